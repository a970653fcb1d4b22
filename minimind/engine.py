"""One thread that generates for everybody who asks: a bounded queue, rows side by side in one batch, cancellation."""

from __future__ import annotations

import collections
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from minimind.model import MiniMind
from minimind.sampling import Batch, Row, Sampling

Event = int | str | Exception
"""What a job hears: a token; at the end "stop" or "length", or what went wrong."""


class Full(Exception):
    """As many wait as may wait."""


class Closed(Exception):
    """The engine takes no more, and gives up what it had."""


@dataclass(eq=False, kw_only=True)
class Job:
    """One text to be continued. ``hear`` is called on the engine's thread and must return at once."""

    prompt: Sequence[int]
    sampling: Sampling
    hear: Callable[[Event], None]
    wanted: bool = True
    """Set to False from any thread to stop it; nothing more is heard then."""


class Engine:
    """Generates for up to ``rows`` jobs at a time; ``queue`` more may wait."""

    def __init__(self, model: MiniMind, *, rows: int, queue: int) -> None:
        self.model, self.rows, self.queue = model, rows, queue
        self._batch = Batch(model)
        self._waiting: collections.deque[Job] = collections.deque()
        self._live: dict[Row, Job] = {}
        self._joining = 0
        self._changed = threading.Condition()
        self._closed = False
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)
        self._thread.start()

    def submit(self, job: Job) -> None:
        """Queue a job.

        Raises:
            Full: when the queue is.
            Closed: after :meth:`close`.
        """
        with self._changed:
            if self._closed:
                raise Closed
            self._drop_unwanted()
            if len(self._waiting) + len(self._live) + self._joining >= self.rows + self.queue:
                raise Full
            self._waiting.append(job)
            self._changed.notify()

    def busy(self) -> tuple[int, int]:
        """How many are being answered, and how many wait."""
        with self._changed:
            self._drop_unwanted()
            return len(self._live) + self._joining, len(self._waiting)

    def close(self) -> None:
        """Give up everything and end the thread."""
        with self._changed:
            self._closed = True
            self._changed.notify()
        self._thread.join()

    def _drop_unwanted(self) -> None:
        self._waiting = collections.deque(job for job in self._waiting if job.wanted)

    def _run(self) -> None:
        while True:
            with self._changed:
                while not (self._closed or self._waiting or self._live):
                    self._changed.wait()
                if self._closed:
                    break
                self._drop_unwanted()
                room = self.rows - len(self._live)
                joining = [self._waiting.popleft() for _ in range(min(room, len(self._waiting)))]
                self._joining = len(joining)
            for job in joining:
                self._join(job)
            try:
                self._step()
            except Exception as error:  # e.g. the GPU's memory is full: these end, the next ones get a fresh cache
                self._give_up(error)
        self._give_up(Closed())
        for job in self._waiting:
            job.hear(Closed())

    def _join(self, job: Job) -> None:
        try:
            if job.wanted:
                row = self._batch.join(job.prompt, job.sampling, wanted=lambda: job.wanted and not self._closed)
                self._tell(job, row)
                if row.finish is None and row.token is not None:
                    self._live[row] = job
        except Exception as error:  # this job's own trouble; the others know nothing of it
            job.hear(error)
        finally:
            self._joining -= 1

    def _step(self) -> None:
        for row in [row for row, job in self._live.items() if not job.wanted]:
            self._batch.leave(row)
            del self._live[row]
        self._batch.step()
        for row, job in list(self._live.items()):
            self._tell(job, row)
            if row.finish:
                del self._live[row]

    def _tell(self, job: Job, row: Row) -> None:
        if row.token is not None:
            job.hear(row.token)
        if row.finish is not None:
            job.hear(row.finish)

    def _give_up(self, error: Exception) -> None:
        live, self._live = self._live, {}
        self._batch = Batch(self.model)
        for job in live.values():
            job.hear(error)
