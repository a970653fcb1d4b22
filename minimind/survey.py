"""A plan's numbers: from the data's shards, the config and what earlier runs left on this machine. Without torch."""

from __future__ import annotations

import dataclasses
import json
import shutil
import tempfile
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from minimind import forecast, history, room, shards, sizes, tokenizer
from minimind.catalog import CATALOG, StageInfo, weights_file
from minimind.config import CannotTrain, ModelConfig, TrainConfig, data_file, tokenizer_folder
from minimind.order import Order, Samples
from minimind.rundir import Reason, RunDir, RunError

EXACT_BYTES = 16 << 20
"""A file of at most this size is tokenised for its plan (the trainer finds it done); of a larger one the beginning."""
HEAD_BYTES = 4 << 20


@dataclass(frozen=True, kw_only=True)
class Before:
    """What the run directory holds already."""

    step: int = 0
    checkpoints: int = 0
    micro_batches_per_step: int | None = None


def survey(
    stage: str,
    config: TrainConfig,
    *,
    nproc: int,
    read_only: bool = False,
    tokens_per_s: float | None = None,
    say: Callable[[str], None] = print,
) -> dict[str, Any]:
    """Everything that can be known of a training before it starts, ready for JSON.

    Args:
        stage: its name in the catalog.
        config: its flags.
        nproc: ranks.
        read_only: use shards that exist; write nothing, not even those.
        tokens_per_s: real tokens of all ranks a second; by default what an earlier run of the same shape reached.
        say: where tokenising is told.

    Raises:
        CannotTrain: what is sure to fail.
        RunError: when there is no plan: the data, the tokenizer or a size is missing or wrong.
    """
    info = CATALOG[stage]
    path, words = data_file(config, info), tokenizer.load(tokenizer_folder(config))
    samples, factor = _samples(path, info, words, config, read_only=read_only, say=say)
    try:
        samples.refuse_nothing(path)
    except RunError as error:
        raise CannotTrain(error.what, why=error.why, remedy=error.remedy, reason=error.reason) from error
    before = _before(config.run_dir)
    data = forecast.measure(samples, name=path.name, factor=factor)
    per_step = before.micro_batches_per_step or config.accumulation_steps * nproc
    order = forecast.order_of(config, data.samples, micro_batches_per_step=per_step)
    model = ModelConfig.for_arch(
        config.arch,
        hidden_size=config.hidden_size,
        num_hidden_layers=config.num_hidden_layers,
        vocab_size=words.vocab_size,
        use_moe=config.use_moe,
    )
    trained, exported, frozen = _parameters(stage, config, model)
    kind, available_bytes = room.available_bytes(config.device)
    on_cpu = config.device == "cpu" or (config.device == "auto" and kind == "main")
    most = forecast.most_tokens(config, model, on_cpu=on_cpu)
    tokens, targets = forecast.largest_pass(samples, config, most=most)
    memory = sizes.memory(
        model,
        trained=trained,
        frozen=frozen,
        tokens=tokens,
        targets=targets,
        teacher_logits=stage == "distillation",
        saves_aside=config.save_interval < forecast.last_step(config, order),
    )
    left = forecast.saves(config, order, done=before.step)
    disk = sizes.disk(
        trained=trained, exported=exported, saves=left, keep=config.keep_checkpoints, held=before.checkpoints
    )
    folder, free_bytes = _free(config)
    summary, notes = forecast.describe(
        data, config, order, trained=trained, where=f"{nproc} rank{'s' if nproc > 1 else ''}"
    )
    last = forecast.last_step(config, order)
    rate, source = tokens_per_s, "--tokens_per_s" if tokens_per_s else None
    if rate is None:
        read = {"data_sha256": samples.shards.meta["file"], "tokenizer_sha256": words.sha256}
        rate, source = history.rate(stage, config, nproc, read=read if data.exact else None)
        if source and not data.exact:
            source += ", perhaps of other data"
    left_tokens = data.tokens * max(0, last - before.step) / order.steps_per_epoch
    return {
        "stage": stage,
        "arch": config.arch,
        "nproc": nproc,
        "data": {"path": str(path), **dataclasses.asdict(data), "fill": data.fill},
        "steps": {
            "per_epoch": order.steps_per_epoch,
            "scheduled": order.total_steps,
            "last": last,
            "done": before.step,
            "left": max(0, last - before.step),
            "checkpoints": left,
        },
        "batch": _batch(config, order, nproc, data.samples),
        "parameters": {"all": sizes.parameters(model), "trained": trained},
        "pass": {"tokens": tokens, "targets": targets},
        "memory_bytes": {**dataclasses.asdict(memory), "total": memory.total},
        "room": {"kind": kind, "available_bytes": available_bytes},
        "disk": {
            "checkpoint_bytes": disk.checkpoint,
            "checkpoints_bytes": disk.checkpoints,
            "export_bytes": disk.export,
            "needed_bytes": disk.to_come,
            "least_bytes": min(left, 1) * disk.checkpoint + disk.export,
            "free_bytes": free_bytes,
            "folder": str(folder),
        },
        "time": {"tokens_per_s": rate, "source": source, "left_s": left_tokens / rate if rate else None},
        "summary": summary,
        "notes": notes,
    }


def _batch(config: TrainConfig, order: Order, nproc: int, samples: int) -> dict[str, Any]:
    alone = forecast.order_of(config, samples, micro_batches_per_step=config.accumulation_steps)
    return {
        "samples_per_step": order.batch_size * order.micro_batches_per_step,
        "learning_rate": forecast.rates(config, order),
        "with_one_rank": {
            "samples_per_step": alone.batch_size * alone.micro_batches_per_step,
            "steps": forecast.last_step(config, alone),
            "learning_rate": forecast.rates(config, alone),
        },
        "same_step": forecast.same_step(config, nproc),
    }


def _samples(
    path: Path,
    info: StageInfo,
    words: tokenizer.Tokenizer,
    config: TrainConfig,
    *,
    read_only: bool,
    say: Callable[[str], None],
) -> tuple[Samples, float]:
    """The file's samples and 1.0, or those of its beginning and how many times larger the file is."""
    kind = shards.kind_for(info, config.arch)
    rendering = shards.Rendering(
        random_system=config.random_system, drop_empty_think=config.drop_empty_think, seed=config.seed
    )
    how: dict[str, Any] = {"skip_bad_lines": config.skip_bad_lines, "rendering": rendering}
    small = not path.is_file() or path.stat().st_size <= EXACT_BYTES
    aside = nullcontext("/nonexistent") if read_only else tempfile.TemporaryDirectory(prefix="minimind-plan-")
    with aside as scratch:
        fallback = (config.run_dir or Path(scratch)) / "shards"
        factor, found = 1.0, shards.find(path, kind, words, fallback=fallback, **how)
        if found is None and read_only:
            raise RunError(
                f"{path} is not tokenised yet",
                why="a plan that may write nothing reads only what is",
                remedy="ask again without --read_only",
                reason=Reason.DATA_MISSING,
            )
        if found is None and small:
            # beside the data, where the trainer finds them; else for this plan alone: a run that may never start
            # gets no folder
            found = shards.load(path, kind, words, fallback=Path(scratch), say=say, **how)
        elif found is None:
            head = _head(path, Path(scratch))
            factor = path.stat().st_size / head.stat().st_size
            how["skip_bad_lines"] = HEAD_BYTES
            found = shards.load(head, kind, words, fallback=Path(scratch), say=_silent, **how)
        return Samples(found, max_seq_len=config.max_seq_len), factor


def _head(path: Path, folder: Path) -> Path:
    with open(path, "rb") as file:
        whole = file.read(HEAD_BYTES).rpartition(b"\n")[0]
    if not whole:
        raise RunError(
            f"{path} has no end of line within {HEAD_BYTES >> 20} MiB",
            why="one JSON object is to stand on each line",
            remedy="check that the file is JSONL",
            reason=Reason.DATA_INVALID,
        )
    head = folder / path.name
    head.write_bytes(whole + b"\n")
    return head


def _silent(text: str) -> None:
    pass


def _parameters(stage: str, config: TrainConfig, model: ModelConfig) -> tuple[int, int, int]:
    """Trained, exported and frozen-beside-the-model parameters."""
    whole = sizes.parameters(model)
    exported = whole + model.vocab_size * model.hidden_size  # the file names the tied head and the embedding
    if stage == "lora":
        rank, targets = config.lora_rank, config.lora_targets  # type: ignore[attr-defined]
        trained = sizes.adapter_parameters(model, rank=rank, targets=targets)
        return trained, trained, 0
    if stage == "dpo":
        return whole, exported, whole
    if stage == "distillation":
        name, width = config.teacher_weight, config.teacher_hidden_size  # type: ignore[attr-defined]
        file = Path(name) if "/" in name or name.endswith(".pth") else None
        file = file or config.save_dir / weights_file(name, hidden_size=width)
        return whole, exported, file.stat().st_size // sizes.FP16 if file.is_file() else whole
    return whole, exported, 0


def _before(run_dir: Path | None) -> Before:
    run = RunDir(run_dir) if run_dir else None
    steps = run.checkpoint_steps() if run else []
    for step in reversed(steps):
        try:
            state = json.loads((run.checkpoints / f"step-{step:08d}" / "state.json").read_bytes())  # type: ignore[union-attr]
            per_step = int(state["identity"]["micro_batches_per_step"])
        except (OSError, ValueError, LookupError, TypeError):
            continue
        return Before(step=step, checkpoints=len(steps), micro_batches_per_step=per_step)
    return Before()


def _free(config: TrainConfig) -> tuple[Path, int]:
    folder = (config.run_dir or config.save_dir.resolve().parent / "runs").absolute()
    while not folder.exists():
        folder = folder.parent
    return folder, shutil.disk_usage(folder).free
