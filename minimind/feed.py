"""What the next step computes, assembled before it begins: by a thread where the device computes by itself."""

from __future__ import annotations

from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Self

import torch

from minimind.batches import Step
from minimind.dist import World
from minimind.passes import Pass, passes_of
from minimind.prepare import TrainState

AHEAD = {"cuda": 2}
"""Steps that the thread is ahead, by device. On a CPU it would take the cores that compute, and a step's batches cost
less than half a percent of the step: there they are assembled when they are asked for (docs/LOG.md)."""


@dataclass(frozen=True, kw_only=True)
class Ready:
    """One step: this rank's passes, and what all ranks together hold."""

    step: Step
    passes: list[Pass]
    count: int
    """What the step divides by: targets, or pairs."""
    tokens: int
    targets: int
    positions: int
    """Places that are computed: each token that has a next one."""
    pairs: int
    """Pairs of a place and one that it attends to, itself included."""


class Feed:
    """Steps in their order. What goes wrong with a step's data is raised when that step is asked for."""

    def __init__(self, state: TrainState, ranks: World, *, last: int) -> None:
        self.state, self.ranks, self.last = state, ranks, last
        self.ahead = AHEAD.get(ranks.device.type, 0)
        self.pool: ThreadPoolExecutor | None = None
        self.begun: deque[tuple[int, Future[Ready]]] = deque()

    def take(self, number: int) -> Ready:
        """Step ``number``; the thread goes on with those behind it."""
        if not self.ahead:
            return self._assemble(number)
        if self.pool is None:
            self.pool = ThreadPoolExecutor(1, thread_name_prefix="feed", initializer=self._on_device)
        if not self.begun or self.begun[0][0] != number:
            self._forget()
            self._begin(number)
        for following in range(self.begun[-1][0] + 1, min(number + self.ahead, self.last) + 1):
            self._begin(following)
        return self.begun.popleft()[1].result()

    def _begin(self, number: int) -> None:
        if self.pool is not None:
            self.begun.append((number, self.pool.submit(self._assemble, number)))

    def _assemble(self, number: int) -> Ready:
        step, reader = self.state.order.step(number), self.state.reader
        passes = passes_of(self.state, step, self.ranks)
        if self.ranks.device.type == "cuda":
            passes = [one.pinned() for one in passes]
        parts = step.micro_batches
        shapes = [reader.computed(samples) for samples in parts]
        return Ready(
            step=step,
            passes=passes,
            count=sum(reader.count(samples) for samples in parts),
            tokens=sum(reader.tokens(samples) for samples in parts),
            targets=sum(reader.targets(samples) for samples in parts),
            positions=sum(positions for positions, _ in shapes),
            pairs=sum(pairs for _, pairs in shapes),
        )

    def _on_device(self) -> None:
        if self.ranks.device.type == "cuda":  # else pinning would open a context on the first GPU
            torch.cuda.set_device(self.ranks.device)

    def _forget(self) -> None:
        for _, future in self.begun:
            future.cancel()
        self.begun.clear()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._forget()
        if self.pool is not None:  # at most the step it is at is still assembled
            self.pool.shutdown(wait=True, cancel_futures=True)
