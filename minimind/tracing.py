"""A profiler's trace of some steps of a training, as a file that a browser opens."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Self

import torch
from torch.profiler import ProfilerActivity, profile

WARM_UP_STEPS = 3
STEPS = 5


class Tracer:
    """Records STEPS steps after the first WARM_UP_STEPS of an attempt, or what there is of them when it ends before.

    It looks on: what is computed, and in which order, is the same without it; only the steps' times are longer.
    """

    def __init__(self, folder: Path, *, on: bool, device: torch.device, say: Callable[[str], None]) -> None:
        self.folder, self.on, self.device, self.say = folder, on, device, say
        self.seen, self.first, self.last = 0, 0, 0
        self.running: profile | None = None

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
            self.running, self.first = profile(activities=activities), number
            self.running.start()
        self.seen += 1
        yield
        self.last = number
        if self.seen == WARM_UP_STEPS + STEPS:
            self._write()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if self.running is not None and kind is None:
            self._write()
        elif self.running is not None:
            self.running.stop()
        elif self.on and kind is None:
            self.say(f"no trace: it begins after {WARM_UP_STEPS} steps, and this attempt had {self.seen}")

    def _write(self) -> None:
        """A disk without room for it is told, and training goes on."""
        recorded, self.running, self.on = self.running, None, False
        if recorded is None:
            return
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        recorded.stop()
        path = self.folder / f"steps-{self.first:08d}-{self.last:08d}.json"
        temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
        try:
            self.folder.mkdir(mode=0o700, exist_ok=True)
            recorded.export_chrome_trace(str(temporary))
            temporary.chmod(0o600)
            os.replace(temporary, path)
        except (OSError, RuntimeError) as error:
            with contextlib.suppress(OSError):
                temporary.unlink()
            self.say(f"warning: the trace could not be written to {self.folder}: {error}")
            return
        self.say(
            f"trace of steps {self.first} to {self.last}: {path} (open it at https://ui.perfetto.dev, which keeps it "
            "on your machine, or in a Chromium at chrome://tracing)"
        )
