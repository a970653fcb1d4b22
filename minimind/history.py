"""How fast earlier runs on this machine were, from what they left in their run directories. Without torch."""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterator
from pathlib import Path

from minimind import flags
from minimind.config import TrainConfig, UsageError
from minimind.rundir import RunDir, RunError, RunSpec

RUNS_LOOKED_AT = 40
METRICS_TAIL_BYTES = 64 << 10
SHAPE = ("arch", "hidden_size", "num_hidden_layers", "use_moe", "max_seq_len", "batch_size", "pack", "dtype", "device")
"""Flags that decide how fast a rank is."""


def rate(
    stage: str, config: TrainConfig, nproc: int, *, computed_on: str | None = None, but: str | None = None
) -> tuple[float | None, str | None]:
    """Tokens a second of the newest run here of the same stage, shape and number of ranks, and that run's name.

    Args:
        stage: its name.
        config: its flags.
        nproc: ranks, all of whose tokens count.
        computed_on: the device's name that its checkpoints must tell; any, when not given.
        but: the name of a run that is left out.
    """
    runs = (config.run_dir.absolute().parent if config.run_dir else config.save_dir.resolve().parent / "runs").glob("*")
    for folder in sorted((run for run in runs if run.is_dir()), key=lambda run: run.name)[: -RUNS_LOOKED_AT - 1 : -1]:
        if folder.name == but:
            continue
        try:
            spec = RunSpec.from_json((folder / "spec.json").read_bytes())
            if spec.stage != stage:
                continue
            asked = flags.parse(stage, spec.flags)
            ranks = (
                json.loads((folder / "env.json").read_bytes())["nproc"]
                if (folder / "env.json").exists()
                else spec.nproc
            )
        except (OSError, UsageError, RunError, ValueError, LookupError, TypeError):
            continue
        alike = ranks == nproc and all(getattr(asked, name) == getattr(config, name) for name in SHAPE)
        if alike and computed_on is not None:
            alike = _computed_on(RunDir(folder)) == computed_on
        if alike and (rates := list(_rates(folder / "metrics.jsonl"))):
            return statistics.median(rates), folder.name
    return None, None


def _computed_on(run: RunDir) -> str | None:
    try:
        newest = run.checkpoints / f"step-{run.checkpoint_steps()[-1]:08d}"
        return str(json.loads((newest / "state.json").read_bytes())["computed_by"]["device"])
    except (OSError, ValueError, LookupError, TypeError):
        return None


def _rates(metrics: Path) -> Iterator[float]:
    try:
        with open(metrics, "rb") as file:
            file.seek(max(0, metrics.stat().st_size - METRICS_TAIL_BYTES))
            lines = file.read().split(b"\n")[:-1]
    except OSError:
        return
    for line in lines:
        try:
            found = json.loads(line)["tokens_per_s"]
        except (ValueError, LookupError, TypeError):
            continue
        if isinstance(found, int | float) and found > 0:
            yield float(found)
