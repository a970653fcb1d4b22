"""From a config to a training that can take its next step, and what a resume may not change."""

from __future__ import annotations

import collections
import dataclasses
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from minimind import checkpoint, fitting, forecast, optim, shards, tokenizer
from minimind.attempt import Attempt
from minimind.batches import Order, Reader
from minimind.config import ModelConfig, TrainConfig, data_file, starting_weights, tokenizer_folder
from minimind.dist import World, load_whole_state
from minimind.durable import sha256_file
from minimind.identity import (
    began_with,
    compare_start,
    computed_by,
    decides,
    refuse_another_stage,
    refuse_changes,
)
from minimind.model import MiniMind
from minimind.precision import LossScale, computed_in
from minimind.rundir import Reason, RunError
from minimind.stages.base import Stage, trainable
from minimind.weights import refuse_differences, refuse_other_tokenizer

WINDOW_STEPS = 100
SHAPE = ("hidden_size", "num_hidden_layers", "vocab_size", "num_experts")
"""What flags say of a model; the rest comes from its weights, or from the generation."""


@dataclass(kw_only=True)
class TrainState:
    """All that a training is at one moment."""

    model: MiniMind
    wrapped: nn.Module
    optimizer: torch.optim.Optimizer
    stage: Stage
    reader: Reader
    order: Order
    scale: LossScale
    identity: dict[str, Any]
    sidecar: dict[str, Any]
    facts: dict[str, Any]
    step: int = 0
    bad_steps: int = 0
    attention: str | None = None
    """Which way a trial on this GPU chose (:mod:`minimind.probe`); None where there was nothing to choose."""
    computed_before: Mapping[str, str] = field(default_factory=dict)
    """What computed the checkpoint that this training goes on from."""
    damaged: tuple[int, ...] = ()
    """Steps of newer checkpoints that were passed over."""
    bad_samples: list[int] = field(default_factory=list)
    """Lines of the data whose loss was not finite on this rank, in the latest of those steps."""
    window: collections.deque[float] = field(default_factory=lambda: collections.deque(maxlen=WINDOW_STEPS))
    """Losses of the latest steps: their mean says which checkpoint is best."""


def prepare(
    stage: Stage, config: TrainConfig, attempt: Attempt, ranks: World, say: Callable[[str], None]
) -> TrainState:
    """Everything before the first step, the same on every rank.

    Raises:
        RunError: for data, weights or a checkpoint that cannot be used.
    """
    _must_be_writable(config.save_dir, ranks)
    if config.max_tokens_per_batch == "auto":
        fitting.refuse(ranks, balanced_by_pass=config.balanced_by_pass)
    torch.manual_seed(config.seed)
    torch.use_deterministic_algorithms(config.deterministic)
    data_path = data_file(config, stage.info)
    words = tokenizer.load(tokenizer_folder(config))
    data = shards.load(
        data_path,
        stage.kind,
        words,
        fallback=attempt.dir.root / "shards",
        skip_bad_lines=config.skip_bad_lines,
        rendering=shards.Rendering(
            random_system=config.random_system, drop_empty_think=config.drop_empty_think, seed=config.seed
        ),
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
    start = starting_weights(config, stage.info)
    if saved:
        refuse_another_stage(saved.state["identity"], stage.info.name)
    if saved and not stage.needs_start_on_resume:  # its shape may be one that only its starting weights had
        model = MiniMind(_asked(config, words, **saved.state["identity"].get("model", {})))
        compare_start(saved.state["identity"].get("began_with"), config, start, say)
    else:
        model = _build(config, words, start)
    stage.prepare(model, say)
    for path in stage.inputs:  # a teacher, or an adapter to start from
        refuse_other_tokenizer(words, path, vocab_size=words.vocab_size, any_tokenizer=config.any_tokenizer)
    identity = {
        "stage": stage.info.name,
        "config": decides(config),
        "model": dataclasses.asdict(model.config),
        "data_sha256": data.meta["file"],
        "tokenizer_sha256": words.sha256,
        "start_sha256": [sha256_file(path) for path in (start, *stage.inputs) if path]
        if stage.needs_start_on_resume
        else [],
        "micro_batches_per_step": config.accumulation_steps * ranks.size,
    }
    if saved:
        refuse_changes(saved.state["identity"], identity)
        identity |= {key: saved.state["identity"].get(key) for key in ("micro_batches_per_step", "began_with")}
    else:
        identity["began_with"] = began_with(config, start)
    reader = Reader(
        data,
        max_seq_len=config.max_seq_len,
        pack=config.pack,
        max_tokens_per_batch=forecast.most_tokens(config, model.config, on_cpu=ranks.device.type == "cpu"),
        weigh=stage.weigh(words),
    )
    reader.by_tokens = config.pack and not config.use_moe
    reader.refuse_nothing(data_path)
    micro_batches_per_step = identity["micro_batches_per_step"]
    order = forecast.order_of(config, len(reader.usable), micro_batches_per_step=micro_batches_per_step)
    model.to(ranks.device).train()
    ranks.shard(model, model.model.layers)
    stage.to(ranks.device)
    optimizer = optim.adamw(trainable(model).values(), learning_rate=config.learning_rate)
    state = TrainState(
        model=model,
        wrapped=model,
        optimizer=optimizer,
        stage=stage,
        reader=reader,
        order=order,
        scale=LossScale(config, ranks.device, sharded=ranks.sharded),
        identity=identity,
        sidecar={
            "model": dataclasses.asdict(model.config),
            "stage": stage.info.name,
            "run_id": attempt.dir.root.name,
            "tokenizer_sha256": words.sha256,
            **({"base_sha256": sha256_file(start)} if start and stage.needs_start_on_resume else {}),
            **stage.sidecar(model),
        },
        facts={
            "model": dataclasses.asdict(model.config),
            "max_seq_len": config.max_seq_len,
            "pack": config.pack,
            **{k: v for k, v in computed_by(config, ranks, None).items() if k != "ranks"},
        },
    )
    if saved:
        _restore(state, saved, ranks)
        state.damaged = saved.damaged
        state.computed_before = saved.state.get("computed_by") or {}
        kept, asked = identity["micro_batches_per_step"], config.accumulation_steps * ranks.size
        as_before = "" if kept == asked else f", as it began; this command alone would mean {asked}"
        say(f"resuming after step {saved.step} ({kept} micro-batches a step{as_before})")
    if config.use_compile:
        for block in model.model.layers:
            block.compile()
    dtype = computed_in(config, ranks.device)
    if ranks.device.type == "cuda" and dtype != config.dtype:
        say(f"note: this GPU has no units for {config.dtype}; computing in {dtype}, the loss scaled")
    _describe(say, state, config, ranks, data_path.name)
    return state


def _must_be_writable(save_dir: Path, ranks: World) -> None:
    """Say at the start, and not after the last step, that the weights cannot go where they are to go."""
    try:
        if ranks.leader:
            save_dir.mkdir(parents=True, exist_ok=True)
        writable, why = os.access(save_dir, os.W_OK) or not ranks.leader, "it cannot be written by this user"
    except OSError as error:
        writable, why = False, str(error)
    if not writable:
        raise RunError(
            f"{save_dir} cannot take the weights",
            why=why,
            remedy="give another --save_dir, or make that one writable",
        )


def _asked(config: TrainConfig, words: tokenizer.Tokenizer, **more: Any) -> ModelConfig:
    asked = ModelConfig.for_arch(
        config.arch,
        hidden_size=config.hidden_size,
        num_hidden_layers=config.num_hidden_layers,
        vocab_size=words.vocab_size,
        use_moe=config.use_moe,
    )
    same = all(more.get(name) == getattr(asked, name) for name in SHAPE)
    return dataclasses.replace(asked, **more) if same else asked  # else what changed is refused by name


def _build(config: TrainConfig, words: tokenizer.Tokenizer, start: Path | None) -> MiniMind:
    asked = _asked(config, words)
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
    refuse_other_tokenizer(words, start, vocab_size=found.vocab_size, any_tokenizer=config.any_tokenizer, exact=True)
    same = all(getattr(found, name) == getattr(asked, name) for name in SHAPE)
    with torch.device("meta"):
        refuse_differences(MiniMind(found if same else asked), state, source=str(start))
    model = MiniMind(found if same else asked)
    checkpoint.strict_load(model, {name: value.float() for name, value in state.items()}, source=str(start))
    return model


def _restore(state: TrainState, saved: checkpoint.Saved, ranks: World) -> None:
    own = trainable(state.model)
    if {n: tuple(p.shape) for n, p in own.items()} != {n: tuple(t.shape) for n, t in saved.parameters.items()}:
        raise RunError(
            f"checkpoint step-{saved.step:08d} does not fit this model",
            why="its parameters have other names or shapes",
            remedy="resume with the --hidden_size and --num_hidden_layers it was started with",
        )
    load_whole_state(ranks, own, state.model, state.optimizer, parameters=saved.parameters, state=saved.optimizer)
    state.step, state.bad_steps = saved.step, int(saved.state.get("bad_steps", 0))
    state.scale.restore(saved.state.get("loss_scale"))
    state.window.extend(saved.state.get("losses", ()))


def _describe(say: Callable[[str], None], state: TrainState, config: TrainConfig, ranks: World, name: str) -> None:
    trained = sum(p.numel() for p in trainable(state.model).values())
    where = f"{ranks.size} x {ranks.device.type}"
    data = forecast.measure(state.reader, name=name)
    summary, notes = forecast.describe(data, config, state.order, trained=trained, where=where)
    for line in (summary, *notes):
        say(line)
