"""From a config to a training that can take its next step, and what a resume may not change."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from minimind import checkpoint, optim, shards, tokenizer
from minimind.attempt import Attempt
from minimind.batches import Order, Reader
from minimind.catalog import weights_file
from minimind.config import ModelConfig, TrainConfig, to_plain
from minimind.dist import World
from minimind.durable import sha256_file
from minimind.model import MiniMind
from minimind.rundir import Reason, RunError
from minimind.stages.base import Stage, trainable

MAY_CHANGE_ON_RESUME = frozenset(
    {
        *("log_interval", "save_interval", "keep_checkpoints", "max_steps", "max_bad_steps", "max_tokens_per_batch"),
        *("device", "dtype", "num_workers", "use_compile", "deterministic", "use_wandb", "wandb_project"),
        *(
            "run_dir",
            "save_dir",
            "data_path",
            "tokenizer",
            "from_weight",
            "from_lora",
            "from_resume",
            "accumulation_steps",
        ),
    }
)
"""Options that do not decide what is learned, or whose content is compared by hash instead of by name."""


@dataclass(kw_only=True)
class TrainState:
    """All that a training is at one moment."""

    model: MiniMind
    wrapped: nn.Module
    optimizer: torch.optim.Optimizer
    stage: Stage
    reader: Reader
    order: Order
    identity: dict[str, Any]
    sidecar: dict[str, Any]
    facts: dict[str, Any]
    step: int = 0
    bad_steps: int = 0


def prepare(
    stage: Stage, config: TrainConfig, attempt: Attempt, ranks: World, say: Callable[[str], None]
) -> TrainState:
    """Everything before the first step, the same on every rank.

    Raises:
        RunError: for data, weights or a checkpoint that cannot be used.
    """
    torch.manual_seed(config.seed)
    torch.use_deterministic_algorithms(config.deterministic)
    lora_name = getattr(config, "lora_name", "")
    data_path = config.data_path or Path("dataset") / stage.info.default_data.format(lora_name=lora_name)
    words = tokenizer.load(config.tokenizer or config.save_dir / "tokenizer")
    data = shards.load(
        data_path,
        stage.kind,
        words,
        fallback=attempt.dir.root / "shards",
        skip_bad_lines=config.skip_bad_lines,
        say=say,
    )
    saved = checkpoint.latest(attempt.dir, say=say)
    if saved and config.from_resume is False:
        raise RunError(
            f"{attempt.dir.root} already holds a checkpoint (step {saved.step})",
            why="--from_resume 0 asks for a fresh start, which would mix two trainings in one run directory",
            remedy="leave --from_resume away to go on from it, or give another --run_dir",
        )
    if config.from_resume and not saved:
        raise RunError(
            f"{attempt.dir.root} holds no checkpoint to resume",
            why="--from_resume 1 asks to go on from one",
            remedy="leave --from_resume away to start afresh, or give the --run_dir of the earlier run",
        )
    start = _starting_weights(stage, config)
    model = _build(config, words.vocab_size, None if saved and not stage.needs_start_on_resume else start)
    stage.prepare(model)
    identity = {
        "stage": stage.info.name,
        "config": {k: v for k, v in to_plain(config).items() if k not in MAY_CHANGE_ON_RESUME},
        "data_sha256": data.meta["file"],
        "tokenizer_sha256": words.sha256,
        "start_sha256": [sha256_file(path) for path in (start, *stage.inputs) if path]
        if stage.needs_start_on_resume
        else [],
        "micro_batches_per_step": config.accumulation_steps * ranks.size,
    }
    if saved:
        _refuse_changes(saved.state["identity"], identity)
        identity["micro_batches_per_step"] = saved.state["identity"]["micro_batches_per_step"]
    reader = Reader(
        data,
        max_seq_len=config.max_seq_len,
        pack=config.pack,
        max_tokens_per_batch=config.max_tokens_per_batch,
        weigh=stage.weigh(words),
    )
    if not len(reader.usable) or not reader.target_counts.any():
        raise RunError(
            f"nothing in {data_path} can be learned from",
            why=f"no text has a target within {config.max_seq_len} tokens",
            remedy="raise --max_seq_len, or check that the file is of the kind that this stage reads",
            reason=Reason.DATA_INVALID,
        )
    order = Order(
        samples=len(reader.usable),
        batch_size=config.batch_size,
        micro_batches_per_step=identity["micro_batches_per_step"],
        epochs=config.epochs,
        seed=config.seed,
    )
    model.to(ranks.device).train()
    stage.to(ranks.device)
    optimizer = optim.adamw(trainable(model).values(), learning_rate=config.learning_rate)
    state = TrainState(
        model=model,
        wrapped=model,
        optimizer=optimizer,
        stage=stage,
        reader=reader,
        order=order,
        identity=identity,
        sidecar={
            "model": dataclasses.asdict(model.config),
            "stage": stage.info.name,
            "run_id": attempt.dir.root.name,
            "tokenizer_sha256": words.sha256,
        },
        facts={
            "start": identity["start_sha256"],
            "model": dataclasses.asdict(model.config),
            "max_seq_len": config.max_seq_len,
            "computed_in": config.dtype if ranks.device.type == "cuda" else "float32",
        },
    )
    if saved:
        _restore(state, saved)
        say(f"resuming after step {saved.step} ({identity['micro_batches_per_step']} micro-batches a step)")
    if config.use_compile:
        for block in model.model.layers:
            block.compile()
    _describe(say, state, config, ranks)
    return state


def _starting_weights(stage: Stage, config: TrainConfig) -> Path | None:
    name = config.from_weight or stage.info.starts_from
    if name is None or name == "none":
        return None
    if "/" in name or name.endswith(".pth"):
        return Path(name)
    return config.save_dir / weights_file(name, hidden_size=config.hidden_size, use_moe=config.use_moe)


def _build(config: TrainConfig, vocab_size: int, start: Path | None) -> MiniMind:
    asked = ModelConfig.for_arch(
        config.arch,
        hidden_size=config.hidden_size,
        num_hidden_layers=config.num_hidden_layers,
        vocab_size=vocab_size,
        use_moe=config.use_moe,
    )
    if start is None:
        return MiniMind(asked)
    state = checkpoint.read_tensors(start)
    found = checkpoint.infer_config(state, checkpoint.sidecar_of(start), source=str(start))
    if found.arch != config.arch:
        raise RunError(
            f"{start} is a {found.arch} model",
            why=f"its keys say so; this run would be one of {config.arch}, with that generation's defaults",
            remedy=f"give --arch {found.arch}",
            reason=Reason.DATA_INVALID,
        )
    named = ("hidden_size", "num_hidden_layers", "vocab_size", "num_experts")
    same = all(getattr(found, name) == getattr(asked, name) for name in named)
    model = MiniMind(found if same else asked)
    checkpoint.strict_load(model, {name: value.float() for name, value in state.items()}, source=str(start))
    return model


def _refuse_changes(before: Mapping[str, Any], now: Mapping[str, Any]) -> None:
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


def _restore(state: TrainState, saved: checkpoint.Saved) -> None:
    own = trainable(state.model)
    if {n: tuple(p.shape) for n, p in own.items()} != {n: tuple(t.shape) for n, t in saved.parameters.items()}:
        raise RunError(
            f"checkpoint step-{saved.step:08d} does not fit this model",
            why="its parameters have other names or shapes",
            remedy="resume with the --hidden_size and --num_hidden_layers it was started with",
        )
    with torch.no_grad():
        for name, parameter in own.items():
            parameter.copy_(saved.parameters[name])
    state.optimizer.load_state_dict(saved.optimizer)
    state.step, state.bad_steps = saved.step, int(saved.state.get("bad_steps", 0))


def _describe(say: Callable[[str], None], state: TrainState, config: TrainConfig, ranks: World) -> None:
    order, reader = state.order, state.reader
    cut = reader.shards.cut(config.max_seq_len)
    parameters = sum(p.numel() for p in trainable(state.model).values())
    say(
        f"{order.samples:,} samples, {int(reader.lengths.sum()):,} tokens, {parameters:,} trainable parameters, "
        f"{order.total_steps:,} steps ({order.steps_per_epoch:,} an epoch) on {ranks.size} x {ranks.device.type}"
    )
    if cut["documents"]:
        say(f"{cut['documents']:,} texts are longer than {config.max_seq_len} tokens; {cut['tokens']:,} tokens are cut")
    if reader.dropped:
        say(f"{reader.dropped:,} pairs are left out: the cut leaves one of their sides without an answer")
    if bad := reader.shards.meta.get("bad_lines"):
        say(f"{bad:,} lines of the data are blank or were skipped as bad")
    if config.save_interval > order.total_steps:
        say(f"save_interval {config.save_interval} exceeds the {order.total_steps} steps: saved at the end only")
