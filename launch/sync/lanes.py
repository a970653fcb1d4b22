"""Several ways at once: while one waits for an answer of the host, the others fill the line."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Generator, Iterable, Sequence
from typing import Generic, TypeVar

T = TypeVar("T")
WAITING = 2
"""Results that wait to be taken, at most."""
POLL_S = 0.1
PATIENCE_S = 60.0
"""How long the end of a way is waited for that nobody wants any more; a host that is silent is given up before that."""
IMPATIENCE_S = 2.0
"""The same for a person who pressed Ctrl-C."""


class Abandoned(Exception):
    """Nobody wants the result any more: another way failed, or the person pressed Ctrl-C."""


class Once:
    """Something that several lanes need and the first one does; the others wait for it."""

    def __init__(self, work: Callable[[], None]) -> None:
        self._work, self._lock, self._done = work, threading.Lock(), False

    def made(self) -> None:
        """Return when it is done; raises what it raises."""
        with self._lock:
            if not self._done:
                self._work()
                self._done = True


class Lanes(Generic[T]):
    """Runs iterables in threads and yields what they give, as it comes.

    What one of them raises is raised here, after everything that was given before it. Close what :meth:`run` returns:
    then no lane writes any more.
    """

    def __init__(self) -> None:
        self._given: queue.Queue[tuple[str, T | Exception | None]] = queue.Queue(WAITING)
        self._stop = threading.Event()
        self._lock = threading.Lock()

    def watched(self, on_bytes: Callable[[int], None]) -> Callable[[int], None]:
        """``on_bytes`` for use by several lanes; it raises :class:`Abandoned` once it is in vain."""

        def count(moved: int) -> None:
            if self._stop.is_set():
                raise Abandoned
            with self._lock:
                on_bytes(moved)

        return count

    def run(self, lanes: Sequence[Iterable[T]]) -> Generator[T, None, None]:
        """What the lanes give."""
        threads = [threading.Thread(target=self._work, args=(lane,), daemon=True) for lane in lanes]
        for thread in threads:
            thread.start()
        left, patience_s = len(threads), PATIENCE_S
        try:
            while left:
                kind, given = self._given.get()
                if kind == "given":
                    yield given  # type: ignore[misc]
                elif isinstance(given, Exception):
                    raise given
                else:
                    left -= 1
        except KeyboardInterrupt:
            patience_s = IMPATIENCE_S
            raise
        finally:
            self._stop.set()
            for thread in threads:
                thread.join(patience_s)

    def _work(self, lane: Iterable[T]) -> None:
        try:
            for given in lane:
                self._put(("given", given))
            self._put(("end", None))
        except Abandoned:
            pass
        except Exception as error:
            self._put(("end", error))

    def _put(self, message: tuple[str, T | Exception | None]) -> None:
        while not self._stop.is_set():
            try:
                self._given.put(message, timeout=POLL_S)
                return
            except queue.Full:
                continue
        if message[0] == "given":
            raise Abandoned
