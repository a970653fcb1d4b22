"""The type that a device computes in, and the loss scaling that float16 needs."""

from __future__ import annotations

import math
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch

from minimind.config import TrainConfig
from minimind.rundir import Reason, RunError

BFLOAT16_FROM = (8, 0)
"""Compute capability from which matrix units know bfloat16; older ones emulate it, slower than float32."""


def computed_in(config: TrainConfig, device: torch.device) -> str:
    """What ``--dtype`` comes to on this device: a CPU computes in float32, an older GPU in float16 for bfloat16."""
    if device.type != "cuda":
        return "float32"
    if config.dtype == "bfloat16" and torch.cuda.get_device_capability(device) < BFLOAT16_FROM:
        return "float16"
    return config.dtype


def autocast(config: TrainConfig, device: torch.device) -> AbstractContextManager[Any]:
    """In which forward passes are made."""
    dtype = computed_in(config, device)
    return nullcontext() if dtype == "float32" else torch.autocast(device.type, dtype=getattr(torch, dtype))


class LossScale:
    """Keeps small gradients above float16's smallest number; does nothing for other types.

    A gradient that leaves float16's range halves the scale, its step is skipped and is nobody's fault; 2000 steps in a
    row without one double it (:class:`torch.amp.GradScaler`).
    """

    def __init__(self, config: TrainConfig, device: torch.device, *, sharded: bool = False) -> None:
        scaled = computed_in(config, device) == "float16"
        if scaled and sharded:
            raise RunError(
                "--parallel fsdp cannot train in float16",
                why="each rank would scale its part of the gradients by what it alone saw of them"
                + ("; this GPU is too old for bfloat16" if config.dtype == "bfloat16" else ""),
                remedy="leave --parallel away, or give --dtype float32"
                + ("" if config.dtype == "bfloat16" else " or bfloat16"),
                reason=Reason.ENV_MISMATCH,
            )
        self.scaler = torch.amp.GradScaler(device.type, enabled=scaled)

    def apply(self, loss: torch.Tensor) -> torch.Tensor:
        """The loss to go back from."""
        return self.scaler.scale(loss)

    def undo(self, optimizer: torch.optim.Optimizer) -> None:
        """Gradients in their own size, before their norm is looked at."""
        self.scaler.unscale_(optimizer)

    def settle(self, optimizer: torch.optim.Optimizer, *, loss: float, norm: float) -> tuple[bool, bool]:
        """Take the step unless a number is not finite.

        Returns:
            whether it was taken, and whether only the scale is to blame that it was not.
        """
        taken = math.isfinite(norm) and math.isfinite(loss)
        overflow = self.scaler.is_enabled() and not math.isfinite(norm) and math.isfinite(loss)
        overflow = overflow and self.scaler.get_scale() > 1.0
        if taken:
            self.scaler.step(optimizer)
        self.scaler.update()
        return taken, overflow

    def state(self) -> dict[str, Any]:
        """For a checkpoint; empty where nothing is scaled."""
        return self.scaler.state_dict()

    def restore(self, state: dict[str, Any] | None) -> None:
        """From a checkpoint, which another type may have written."""
        if state and self.scaler.is_enabled():
            self.scaler.load_state_dict(state)
