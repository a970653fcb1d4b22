"""Checkpoints written beside the training: a copy of the state is taken at the step, a thread makes it durable.

What a reader may rely on stays as it is with a loop that waits: a checkpoint is whole or absent, the metrics of its
steps are on the disk before it has its name, and whatever is told afterwards is told after it has its name.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
import threading
import time
from collections.abc import Mapping
from typing import Any, Self

import torch
from torch import Tensor
from torch.utils._pytree import tree_map

from minimind import checkpoint, forecast, sizes
from minimind.config import TrainConfig
from minimind.dist import World, whole_state
from minimind.identity import computed_by
from minimind.metrics import Metrics
from minimind.prepare import TrainState
from minimind.rundir import RunDir
from minimind.stages.base import trainable


class Saver:
    """Rank 0's writer: at most one checkpoint is on its way, and the next one waits for it.

    An error of the thread (a full disk) is raised in the loop, at the next step or save or at the end. Leaving the
    context waits for what is on its way, so that nothing is said about the run while it is being written.
    """

    def __init__(self, run: RunDir, *, keep: int, metrics: Metrics | None = None) -> None:
        self.run, self.keep, self.metrics = run, keep, metrics
        self.thread: threading.Thread | None = None
        self.error: BaseException | None = None
        self.saves = 0
        self.waited_s = 0.0
        """How long the loop stood still for saves."""

    def save(
        self, *, step: int, state: Mapping[str, Any], parameters: dict[str, Tensor], optimizer: Any, aside: bool
    ) -> None:
        """Publish a checkpoint; with ``aside`` by the thread, from a copy, else before this returns.

        Raises:
            RunError: DISK_FULL, for this checkpoint or for the one before it.
        """
        began = time.perf_counter()
        try:
            self.wait()
            self.saves += 1
            if not aside:
                self._write(None, step=step, state=state, parameters=parameters, optimizer=optimizer)
                return
            copied, done = snapshot((parameters, optimizer))
            self.thread = threading.Thread(
                target=self._write_aside,
                name="checkpoint",
                args=(done,),
                kwargs={"step": step, "state": state, "parameters": copied[0], "optimizer": copied[1]},
            )
            self.thread.start()
        finally:
            self.waited_s += time.perf_counter() - began

    def check(self) -> None:
        """Raise what the thread met with, if it has; waits for nothing."""
        if self.thread is not None and not self.thread.is_alive():
            self.wait()

    def wait(self) -> None:
        """Until nothing is on its way; raises what the thread met with."""
        if self.thread is not None:
            self.thread.join()
            self.thread = None
        if self.error is not None:
            error, self.error = self.error, None
            raise error

    def _write_aside(self, done: torch.cuda.Event | None, **what: Any) -> None:
        try:
            self._write(done, **what)
        except BaseException as error:  # raised in the loop
            self.error = error

    def _write(self, done: torch.cuda.Event | None, **what: Any) -> None:
        if done is not None:
            done.synchronize()
        if self.metrics is not None:  # a resume does not compute these steps again
            self.metrics.sync()
        checkpoint.save(self.run, keep=self.keep, **what)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:
            self.wait()
        else:  # what ends the run already is its first cause
            with contextlib.suppress(Exception):
                self.wait()


WRITTEN_BESIDE = 1.1
"""What a checkpoint or the weights take on the disk for each byte of their numbers, at the most."""


def to_come_bytes(config: TrainConfig, state: TrainState, run: RunDir, *, saved: int) -> int:
    """The most that the checkpoints after step ``saved`` and the final weights will take beside what lies there."""
    disk = sizes.disk(
        trained=sum(parameter.numel() for parameter in trainable(state.model).values()),
        exported=sum(tensor.numel() for tensor in state.stage.weights(state.model).values()),
        saves=forecast.saves(config, state.order, done=saved),
        keep=config.keep_checkpoints,
        held=len(run.checkpoint_steps()),
    )
    return math.ceil(WRITTEN_BESIDE * disk.to_come)


def save(config: TrainConfig, ranks: World, state: TrainState, saver: Saver, *, aside: bool) -> None:
    """Checkpoint a training; ``aside`` when it goes on meanwhile.

    A sharded model is gathered by all ranks first, and its checkpoint is written before training goes on: the others
    wait in their next collective either way.
    """
    if not (ranks.leader or ranks.sharded):
        return
    parameters, optimizer = whole_state(ranks, trainable(state.model), state.model, state.optimizer)
    if ranks.leader:
        saver.save(
            step=state.step,
            state={
                "identity": state.identity,
                "bad_steps": state.bad_steps,
                "computed_by": computed_by(config, ranks, state.attention),
                "loss_scale": state.scale.state(),
                "losses": list(state.window),
                "mean_loss": math.fsum(state.window) / len(state.window) if state.window else None,
            },
            parameters=parameters,
            optimizer=optimizer,
            aside=aside and not ranks.sharded,
        )


def keep_sound(config: TrainConfig, ranks: World, state: TrainState, saver: Saver) -> None:
    """Checkpoint the last step that changed anything, before a run ends because those after it were not finite."""
    sound_step = state.step - state.bad_steps
    if sound_step:
        save(config, ranks, dataclasses.replace(state, step=sound_step, bad_steps=0), saver, aside=False)


def snapshot(state: Any) -> tuple[Any, torch.cuda.Event | None]:
    """A copy of every tensor in main memory, and what to wait for before it is read.

    From a GPU the copies are queued into pinned memory behind the update they belong to and before the next one, so
    that the loop goes on at once; the event says when they have arrived.
    """
    on_gpu = False

    def copy(value: Any) -> Any:
        nonlocal on_gpu
        if not isinstance(value, Tensor):
            return value
        value = value.detach()
        if value.device.type != "cuda":
            return value.clone()
        on_gpu = True
        return _pinned_like(value).copy_(value, non_blocking=True)

    copied = tree_map(copy, state)
    if not on_gpu:
        return copied, None
    done = torch.cuda.Event()
    done.record()
    return copied, done


def _pinned_like(value: Tensor) -> Tensor:
    try:
        return torch.empty_like(value, device="cpu", pin_memory=True)
    except RuntimeError:  # a host that lets no more memory be pinned: the copy waits then, and is the same
        return torch.empty_like(value, device="cpu")
