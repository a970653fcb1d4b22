"""``python -m minimind plan <stage> [the stage's flags]``: what that training will do, before it does it."""

from __future__ import annotations

import json as json_text
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any

from minimind.catalog import CATALOG
from minimind.config import CannotTrain, UsageError
from minimind.flags import Parser, add_fields, parse
from minimind.rundir import Reason, RunError

GB = 1e9


@dataclass(frozen=True, kw_only=True)
class PlanConfig:
    """What a training will do: steps, save points, memory, disk, time. The stage's own flags may follow."""

    nproc: Annotated[int, "ranks that it would have"] = 1
    tokens_per_s: Annotated[
        float | None, "real tokens a second, all ranks; default: an earlier run's of this shape"
    ] = None
    json: Annotated[bool, "print one JSON object"] = False
    read_only: Annotated[bool, "write nothing: no plan unless the data is tokenised already"] = False
    flags_only: Annotated[bool, "only check the stage's flags; no file is looked at"] = False


def plan(argv: Sequence[str]) -> int:
    """Print the plan; returns 0, or what the trainer would end with where it is sure to fail."""
    stage = argv[0] if argv else "--help"
    parser = Parser(prog=f"python -m minimind plan {stage}", allow_abbrev=False, add_help=False)
    add_fields(parser, PlanConfig, {})
    if stage in ("-h", "--help"):
        parser.prog = "python -m minimind plan <stage>"
        parser.description, parser.epilog = PlanConfig.__doc__, "stages: " + " ".join(_stages())
        parser.print_help()
        return 0
    if stage not in CATALOG:
        raise UsageError(
            f"there is no stage {stage!r}",
            why=f"the stages are {', '.join(CATALOG)}",
            remedy="python -m minimind plan <stage> [the stage's flags]",
        )
    words = list(argv[1:])
    apart = words.index("--") if "--" in words else len(words)  # behind it stand flags of the stage and nothing else
    known, rest = parser.parse_known_args(words[:apart])
    options, rest = PlanConfig(**vars(known)), [*rest, *words[apart + 1 :]]
    try:
        return _plan(stage, options, rest)
    except RunError as error:
        if not options.json:
            raise
        certain, usage = isinstance(error, CannotTrain), isinstance(error, UsageError)
        print(json_text.dumps({"stage": stage, "error": {**_told(error), "certain": certain, "usage": usage}}))
        return 2 if usage else 3


def _plan(stage: str, options: PlanConfig, rest: list[str]) -> int:
    config = parse(stage, rest)
    if options.nproc < 1 or not (options.tokens_per_s is None or options.tokens_per_s > 0):
        raise UsageError(
            "--nproc and --tokens_per_s must be above 0",
            why=f"they are {options.nproc} and {options.tokens_per_s}",
            remedy="give the number of ranks, and a rate that an earlier run reached",
        )
    if options.flags_only:
        return 0
    if stage == "tokenizer":
        raise RunError(
            "the tokenizer stage has no steps to plan",
            why="it reads its file once, on one rank",
            remedy=f"plan one of {', '.join(_stages())}",
        )
    from minimind.survey import survey

    def say(text: str) -> None:
        print(text, file=sys.stderr, flush=True)

    found = survey(
        stage, config, nproc=options.nproc, read_only=options.read_only, tokens_per_s=options.tokens_per_s, say=say
    )
    error = _no_room(found)
    found["warnings"] = _warnings(found)
    found["lines"] = _lines(found)
    if options.json:
        told = {**_told(error), "certain": True} if error else None
        print(json_text.dumps({**found, **({"error": told} if told else {})}))
        return 3 if error else 0
    for line in (*(f"warning: {text}" for text in found["warnings"]), *found["lines"]):
        print(line)
    if error:
        raise error
    return 0


def _told(error: RunError) -> dict[str, str]:
    return {"what": error.what, "why": error.why, "remedy": error.remedy, "reason": error.reason}


def _stages() -> list[str]:
    return [stage for stage in CATALOG if stage != "tokenizer"]


def _no_room(found: dict[str, Any]) -> CannotTrain | None:
    disk = found["disk"]
    if disk["free_bytes"] >= disk["least_bytes"]:
        return None
    return CannotTrain(
        f"{disk['folder']} has {_gb(disk['free_bytes'])} free, one checkpoint and the final weights need "
        f"{_gb(disk['least_bytes'])}",
        why=f"a checkpoint holds fp32 weights and optimiser state of {found['parameters']['trained']:,} parameters",
        remedy="free space there, or let the run directory lie on a larger disk (--run_dir; for a host, its root)",
        reason=Reason.DISK_FULL,
    )


def _warnings(found: dict[str, Any]) -> list[str]:
    disk, batch, nproc = found["disk"], found["batch"], found["nproc"]
    warnings = list(found["notes"])
    if disk["free_bytes"] < disk["needed_bytes"]:
        warnings.append(
            f"the checkpoints will need {_gb(disk['needed_bytes'])} at their most and {disk['folder']} has "
            f"{_gb(disk['free_bytes'])} free: lower --keep_checkpoints, or free space"
        )
    warnings += _too_small(found)
    alone = batch["with_one_rank"]
    if batch["samples_per_step"] != alone["samples_per_step"] and not found["steps"]["done"]:
        equal = batch["same_step"]
        advice = (
            "for the steps of one rank give " + " ".join(f"--{name} {value}" for name, value in equal.items())
            if equal
            else f"{alone['samples_per_step']} samples cannot be shared out evenly among {nproc} ranks"
        )
        steps = found["steps"]["last"]
        fewer = f", so the run has {steps:,} steps instead of {alone['steps']:,}" if steps != alone["steps"] else ""
        warnings.append(
            f"with {nproc} ranks a step holds {batch['samples_per_step']:,} samples instead of "
            f"{alone['samples_per_step']:,}{fewer}: {advice}"
        )
    return warnings


def _too_small(found: dict[str, Any]) -> list[str]:
    room, needed_bytes = found["room"], found["memory_bytes"]["total"]
    if room["kind"] == "main":
        needed_bytes *= found["nproc"]
    if room["available_bytes"] is None or needed_bytes <= room["available_bytes"]:
        return []
    has = "a GPU here has" if room["kind"] == "gpu" else "this machine has free"
    each = "a rank" if room["kind"] == "gpu" else f"{found['nproc']} rank{'s' if found['nproc'] > 1 else ''}"
    return [
        f"about {_gb(needed_bytes)} of memory for {each} are more than the {_gb(room['available_bytes'])} that {has}: "
        "smaller --batch_size with more --accumulation_steps, or --max_tokens_per_batch"
    ]


def _lines(found: dict[str, Any]) -> list[str]:
    data, steps, batch, memory, disk = (found[name] for name in ("data", "steps", "batch", "memory_bytes", "disk"))
    about = "" if data["exact"] else ", projected from the beginning of the file"
    first, last = batch["learning_rate"]
    one_first, one_last = batch["with_one_rank"]["learning_rate"]
    alone = f" (one rank: {one_first:.3g} and {one_last:.3g})" if found["nproc"] > 1 else ""
    parts = ", ".join(f"{name} {_gb(memory[name])}" for name in memory if name != "total" and memory[name])
    left = f"; {steps['done']:,} are done, {steps['left']:,} are left" if steps["done"] else ""
    return [
        f"{found['stage']} ({found['arch']}): {found['summary']}",
        f"data: {data['targets']:,} of {data['tokens']:,} tokens an epoch are targets{about}",
        f"packing: without padding; rows padded to the longest allowed would be {data['fill']:.0%} full; the largest "
        f"pass holds {found['pass']['tokens']:,} tokens",
        f"steps: {steps['last']:,} of {batch['samples_per_step']:,} samples{left}; {_plural(steps['checkpoints'])}",
        f"learning rate: {first:.3g} at the first step, {last:.3g} at the last{alone}",
        f"model: {found['parameters']['all']:,} parameters, {found['parameters']['trained']:,} of them trained",
        f"memory: about {_gb(memory['total'])} a rank ({parts})",
        f"disk: {_gb(disk['needed_bytes'])} at the most (a checkpoint {_gb(disk['checkpoint_bytes'])}, the final "
        f"weights {_gb(disk['export_bytes'])}); {_gb(disk['free_bytes'])} free at {disk['folder']}",
        _time(found["time"]),
    ]


def _time(time: dict[str, Any]) -> str:
    if time["left_s"] is None:
        return "time: not known; no earlier run here had this shape (or give --tokens_per_s)"
    return f"time: about {_duration(time['left_s'])} at {time['tokens_per_s']:,.0f} tokens/s ({time['source']})"


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    if seconds < 90 * 60:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h"


def _gb(size_bytes: float) -> str:
    return f"{size_bytes / 1e6:,.0f} MB" if size_bytes < GB else f"{size_bytes / GB:,.1f} GB"


def _plural(checkpoints: int) -> str:
    return f"{checkpoints:,} checkpoint{'' if checkpoints == 1 else 's'} to be written"
