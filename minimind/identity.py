"""What a run is the training of: what a resume may not change, and what it may change but says."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from minimind.config import TrainConfig, to_plain
from minimind.dist import World
from minimind.durable import sha256_file
from minimind.precision import computed_in
from minimind.rundir import RunError

MAY_CHANGE_ON_RESUME = frozenset(
    {
        *("log_interval", "save_interval", "keep_checkpoints", "max_steps", "max_bad_steps", "max_tokens_per_batch"),
        *("device", "dtype", "num_workers", "use_compile", "deterministic", "use_wandb", "wandb_project"),
        *("parallel", "hang_timeout", "profile"),
        *(
            "run_dir",
            "save_dir",
            "data_path",
            "tokenizer",
            "any_tokenizer",
            "preset",
            "from_weight",
            "from_lora",
            "from_resume",
            "accumulation_steps",
        ),
    }
)
"""Options that do not decide what is learned, or whose content is compared by hash instead of by name."""


def decides(config: TrainConfig) -> dict[str, Any]:
    """The options that decide what is learned, as JSON knows them."""
    told = to_plain(config)
    kept = {name: value for name, value in told.items() if name not in MAY_CHANGE_ON_RESUME}
    if config.balanced_by_pass:
        kept["max_tokens_per_batch"] = told["max_tokens_per_batch"]
    return kept


def refuse_another_stage(before: Mapping[str, Any], stage: str) -> None:
    """Raise when a checkpoint is of another stage, which has another loss and another optimiser's state."""
    if before["stage"] != stage:
        raise RunError(
            f"this run directory holds a training of {before['stage']}, not of {stage}",
            why="each stage has data, a loss and an optimiser's state of its own",
            remedy=f"give another --run_dir; to go on from its weights name them with --from_weight; to resume it run "
            f"{before['stage']}",
        )


def refuse_changes(before: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    """Raise, naming each, for options and inputs that decide what is learned and are not what they were."""
    changed = [
        f"--{k} was {v}, is {now['config'].get(k)}" for k, v in before["config"].items() if v != now["config"].get(k)
    ]
    named = {
        "data_sha256": "the data file",
        "tokenizer_sha256": "the tokenizer",
        "start_sha256": "the starting weights",
    }
    changed += [f"{text} is another one" for key, text in named.items() if before[key] != now[key]]
    if changed:
        raise RunError(
            "this is not the training that the checkpoint belongs to",
            why="; ".join(changed),
            remedy="resume with what it was started with, or start a new run from its weights (--from_weight)",
        )


def computed_by(config: TrainConfig, ranks: World, attention: str | None) -> dict[str, str]:
    """What may change on a resume and decides the last digits of every loss; ``attention`` where it was chosen."""
    dtype = computed_in(config, ranks.device)
    name = torch.cuda.get_device_name(ranks.device) if ranks.device.type == "cuda" else "cpu"
    found = {"torch": torch.__version__, "device": name, "dtype": dtype, "ranks": str(ranks.size)}
    return found if attention is None else found | {"attention": attention}


def say_what_else_computes(before: Mapping[str, str], now: Mapping[str, str], say: Callable[[str], None]) -> None:
    """Say what may change and moves the last digits: torch, the device, its type, how it attends, ranks."""
    changed = [f"{key} was {before[key]}, is {value}" for key, value in now.items() if before.get(key, value) != value]
    if changed:
        say(f"note: {'; '.join(changed)}: the same samples and rates, but losses may differ in their last digits")


def began_with(config: TrainConfig, start: Path | None) -> dict[str, str | None]:
    """Of the weights that a training starts from: what they were called, and their sha256."""
    return {"name": config.from_weight, "sha256": sha256_file(start) if start else None}


def compare_start(
    before: Mapping[str, Any] | None, config: TrainConfig, start: Path | None, say: Callable[[str], None]
) -> None:
    """Where weights are named on a resume: they are read no more, so others than before are an error or worth a word.

    A file of the same name whose content has changed since (the stage before was trained again) is only told: the
    training that goes on must not depend on it.

    Args:
        before: what :func:`began_with` said at the start; None for a checkpoint that does not know.
        config: of this attempt.
        start: the file it names; it may be gone.
        say: is told.

    Raises:
        RunError: when another file with other weights is named.
    """
    if before is None or config.from_weight is None or (start is not None and not start.is_file()):
        return
    now = began_with(config, start)
    if now["sha256"] == before["sha256"]:
        return
    if now["name"] != before["name"]:
        raise RunError(
            "this is not the training that the checkpoint belongs to",
            why=f"it began with --from_weight {before['name'] or 'left away'}, and {now['name']} holds other weights",
            remedy="leave --from_weight as it was to go on, or give another --run_dir to train from these weights",
        )
    say(f"note: {start} holds other weights than when this training began; it goes on from its checkpoint")
