"""A profiler's trace of some steps of a training, as a file that a browser opens."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Self

import torch
from torch.profiler import ProfilerActivity, profile

from minimind.durable import is_disk_full

WARM_UP_STEPS = 3
STEPS = 5
PROBE_BYTES = 1 << 20
"""More than the profiler can have had in hand when a full disk stopped it."""


class Tracer:
    """Records STEPS steps after the first WARM_UP_STEPS of an attempt, or what there is of them when it ends before.

    It looks on: what is computed, and in which order, is the same without it; only the steps' times are longer. A
    trace that the disk has no room for, or that would take the room of what the run still writes, is given up.
    """

    def __init__(
        self,
        folder: Path,
        *,
        on: bool,
        device: torch.device,
        say: Callable[[str], None],
        before: Callable[[], None] = lambda: None,
        needed_bytes: Callable[[int], int] = lambda step: 0,
    ) -> None:
        """``before`` is called before a trace is written; ``needed_bytes`` says what the run writes after a step."""
        self.folder, self.on, self.device, self.say = folder, on, device, say
        self.before, self.needed_bytes = before, needed_bytes
        self.seen, self.first, self.last = 0, 0, 0
        self.running: profile | None = None
        self.took_s = 0.0
        """How long training stood still for it."""

    @contextlib.contextmanager
    def step(self, number: int) -> Iterator[None]:
        """Around step ``number``."""
        if not self.on:
            yield
            return
        if self.seen == WARM_UP_STEPS:
            activities = [ProfilerActivity.CPU]
            if self.device.type == "cuda":
                activities.append(ProfilerActivity.CUDA)
            with self._counted():
                self.running, self.first = profile(activities=activities), number
                self.running.start()
        self.seen += 1
        yield
        self.last = number
        if self.seen == WARM_UP_STEPS + STEPS:
            with self._counted():
                self._write(saved=number - 1)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if self.running is not None and kind is None:
            self._write(saved=self.last)
        elif self.running is not None:
            self.running.stop()
        elif self.on and kind is None:
            self.say(f"no trace: it begins after {WARM_UP_STEPS} steps, and this attempt had {self.seen}")

    @contextlib.contextmanager
    def _counted(self) -> Iterator[None]:
        began = time.perf_counter()
        yield
        self.took_s += time.perf_counter() - began

    def _write(self, *, saved: int) -> None:
        """A disk without room for it is told, and training goes on; ``saved`` is the last step that is on the disk."""
        recorded, self.running, self.on = self.running, None, False
        if recorded is None:
            return
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        recorded.stop()
        self.before()
        path = self.folder / f"steps-{self.first:08d}-{self.last:08d}.json"
        aside = self.folder / ".trace.tmp"  # a folder: the profiler gives what is half written a name of its own
        try:
            self.folder.mkdir(mode=0o700, exist_ok=True)
            _empty(aside)  # of an attempt that was killed
            aside.mkdir(mode=0o700)
            recorded.export_chrome_trace(str(aside / path.name))
            _refuse(aside / path.name, needed_bytes=self.needed_bytes(saved))
            (aside / path.name).chmod(0o600)
            os.replace(aside / path.name, path)
        except (OSError, RuntimeError) as error:
            advice = "; free space, or move the run to a larger disk, for another one" if is_disk_full(error) else ""
            self.say(
                f"warning: the trace could not be written to {self.folder}: {error}; training goes on without{advice}"
            )
            return
        finally:
            _empty(aside)
        self.say(
            f"trace of steps {self.first} to {self.last}: {path} (open it at https://ui.perfetto.dev, which keeps it "
            "on your machine, or in a Chromium at chrome://tracing)"
        )


def _refuse(made: Path, *, needed_bytes: int) -> None:
    """Raise for a trace that is not there, since the profiler tells no error, or that takes others' room."""
    if not made.is_file():
        written_bytes = sum(path.stat().st_size for path in made.parent.iterdir())
        try:
            (made.parent / "probe").write_bytes(bytes(PROBE_BYTES))
        except OSError as error:
            if is_disk_full(error):
                why = f"the disk is full: the trace needs more than the {written_bytes:,} bytes that were free"
                raise OSError(why) from error
            raise
        raise OSError("the profiler wrote none and did not say why")
    free_bytes = shutil.disk_usage(made.parent).free
    if free_bytes < needed_bytes:
        raise OSError(
            f"the disk is full: {free_bytes:,} bytes are free beside the trace of {made.stat().st_size:,}, the "
            f"checkpoints and weights to come need {needed_bytes:,}"
        ) from OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def _empty(folder: Path) -> None:
    """Remove a folder of files, and give their room back at once: the profiler keeps one open that it gave up."""
    with contextlib.suppress(OSError):
        for path in folder.iterdir():
            os.truncate(path, 0)
    shutil.rmtree(folder, ignore_errors=True)
