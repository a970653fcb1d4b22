"""How fast earlier runs on this machine were, from what they left in their run directories. Without torch."""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from minimind import flags
from minimind.config import TrainConfig, UsageError
from minimind.rundir import RunDir, RunError, RunSpec

RUNS_LOOKED_AT = 40
WARM_UP_STEPS = 3
"""The first steps import, compile and fill caches: nothing is judged by them."""
METRICS_TAIL_BYTES = 64 << 10
WORK = (
    *("arch", "hidden_size", "num_hidden_layers", "use_moe", "lora_rank", "lora_targets", "from_lora"),
    *("teacher_weight", "teacher_hidden_size", "dropout", "max_seq_len", "random_system", "drop_empty_think"),
    *("batch_size", "max_tokens_per_batch", "pack", "dtype", "device", "use_compile", "deterministic"),
)
"""Flags that decide what a rank computes for a token and how: tokens a second compare only where they are the same.
(``accumulation_steps`` is none: ranks share one step's micro-batches, so with more ranks it is lower.)"""
READ = ("data_sha256", "tokenizer_sha256")
"""What of a checkpoint's identity decides how long the texts are."""


def rate(
    stage: str,
    config: TrainConfig,
    nproc: int,
    *,
    read: Mapping[str, Any] | None,
    computed_on: str | None = None,
    but: str | None = None,
) -> tuple[float | None, str | None]:
    """Tokens a second of the newest run here of the same stage, work and number of ranks, and that run's name.

    It is the median of its last steps by themselves: without saves and logging, and without the first ones.

    Args:
        stage: its name.
        config: its flags.
        nproc: ranks, all of whose tokens count.
        read: the sha256 of the data and of the tokenizer (READ) that its checkpoints must tell; any, when None.
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
        names = WORK if nproc == 1 else (*WORK, "parallel")
        alike = ranks == nproc and all(getattr(asked, name, None) == getattr(config, name, None) for name in names)
        if alike and (read is not None or computed_on is not None):
            found = _newest_state(RunDir(folder))
            alike = read is None or all(found.get("identity", {}).get(name) == read[name] for name in READ)
            alike = alike and computed_on in (None, found.get("computed_by", {}).get("device"))
        if alike and (rates := list(_rates(folder / "metrics.jsonl"))):
            return statistics.median(rates), folder.name
    return None, None


def _newest_state(run: RunDir) -> dict[str, Any]:
    """What its newest checkpoint says of itself; empty without one."""
    try:
        newest = run.checkpoints / f"step-{run.checkpoint_steps()[-1]:08d}"
        state = json.loads((newest / "state.json").read_bytes())
        return {key: value for key, value in state.items() if isinstance(value, dict)}
    except (OSError, ValueError, LookupError, AttributeError):
        return {}


def _rates(metrics: Path) -> Iterator[float]:
    try:
        with open(metrics, "rb") as file:
            begun = max(0, metrics.stat().st_size - METRICS_TAIL_BYTES)
            file.seek(begun)
            lines = file.read().split(b"\n")[0 if begun else WARM_UP_STEPS : -1]
    except OSError:
        return
    for line in lines:
        try:
            found = json.loads(line)["tokens_per_s"]
        except (ValueError, LookupError, TypeError):
            continue
        if isinstance(found, int | float) and found > 0:
            yield float(found)
