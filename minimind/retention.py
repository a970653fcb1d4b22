"""Which checkpoints stay: the newest ones, and the best by the loss of the steps before it. Standard library only."""

from __future__ import annotations

import json
import math
import shutil

from minimind.rundir import RunDir


def prune(run: RunDir, *, keep: int) -> None:
    """Drop all checkpoints but the ``keep`` newest and the best, and whatever a killed save left behind.

    A checkpoint loses its name before its files, so that none is ever half there under a name that is believed.
    """
    best = best_step(run)
    for old in run.checkpoint_steps()[:-keep]:
        if old != best:
            folder = run.checkpoints / f"step-{old:08d}"
            folder.rename(run.checkpoints / f".{folder.name}.old.tmp")
    for leftover in run.checkpoints.glob(".step-*.tmp"):
        shutil.rmtree(leftover, ignore_errors=True)


def best_step(run: RunDir) -> int | None:
    """The checkpoint with the lowest ``mean_loss`` in its state.json (the newest of equals); None without one."""
    losses = {step: loss for step in run.checkpoint_steps() if (loss := _mean_loss(run, step)) is not None}
    return min(losses, key=lambda step: (losses[step], -step), default=None)


def _mean_loss(run: RunDir, step: int) -> float | None:
    try:
        loss = json.loads((run.checkpoints / f"step-{step:08d}" / "state.json").read_bytes())["mean_loss"]
    except (OSError, ValueError, LookupError, TypeError):
        return None
    return float(loss) if isinstance(loss, int | float) and math.isfinite(loss) else None
