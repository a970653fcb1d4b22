"""The only training loop: passes, one sum over ranks, one division, one update; checkpoint, stop, export."""

from __future__ import annotations

import math
import signal
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from minimind import checkpoint, optim
from minimind.attempt import Attempt, PeerFailed
from minimind.batches import Batch, Step
from minimind.catalog import written_file
from minimind.config import TrainConfig, to_plain
from minimind.dist import World, world
from minimind.metrics import Metrics, peak_flops
from minimind.prepare import TrainState, prepare
from minimind.rundir import Reason, RunError
from minimind.stages.base import Stage, trainable


def train(stage: Stage, config: TrainConfig, argv: list[str]) -> None:
    """Train one stage to its end, or to where it is told to stop.

    Raises:
        RunError: for whatever a user or a machine caused; it is in outcome.json too.
    """
    attempt = Attempt(stage.info.name, argv, run_dir=config.run_dir, save_dir=config.save_dir)
    with attempt, world(config.device) as ranks:
        attempt.agreed = True
        attempt.adopt(ranks.share(str(attempt.dir.root)))
        say = print_line if ranks.leader else _silent
        state, problem = None, None
        try:
            state = prepare(stage, config, attempt, ranks, say)
        except Exception as error:  # told below by every rank at once, so that none waits for one that left
            problem = error
        if ranks.sum([float(problem is not None)])[0]:
            raise problem or PeerFailed
        if state is not None:
            state.wrapped = ranks.wrap(state.model)
            with _autocast(config, ranks):
                stage.begin(state.reader, ranks, state.facts, say)
            attempt.agreed = False
            _run(config, attempt, ranks, state, say)


def print_line(text: str) -> None:
    """Say something on the console at once."""
    print(text, flush=True)


def _silent(text: str) -> None:
    pass


class _StopFlag:
    """SIGTERM and SIGINT only set it from the first step on; ranks agree on it in the step's sum."""

    def __init__(self) -> None:
        self.set = False
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._on_signal)

    def _on_signal(self, number: int, frame: object) -> None:
        self.set = True


def _run(
    config: TrainConfig,
    attempt: Attempt,
    ranks: World,
    state: TrainState,
    say: Callable[[str], None],
) -> None:
    last = min(state.order.total_steps, config.max_steps or state.order.total_steps)
    attempt.last_step = state.step
    stop = _StopFlag()
    metrics = None
    if ranks.leader:
        metrics = Metrics(
            attempt.dir.metrics,
            log_interval=config.log_interval,
            total_steps=last,
            steps_per_epoch=state.order.steps_per_epoch,
            epochs=config.epochs,
        )
        if config.use_wandb:
            run_id = attempt.dir.root.name
            metrics.track(project=config.wandb_project, name=run_id, config=to_plain(config), folder=attempt.dir.root)
    stopped = False
    with metrics or nullcontext():
        while state.step < last and not stopped:
            line, stopped = _one_step(config, attempt, ranks, state, stop)
            attempt.last_step = state.step
            if metrics:
                metrics.log(line)
            if state.bad_steps >= config.max_bad_steps or (state.bad_steps and state.step == last):
                attempt.agreed = True
                raise RunError(
                    f"the gradient was not finite in {state.bad_steps} steps in a row, the last is {state.step}",
                    why="training diverged, or the loss is infinite; none of these steps changed the weights",
                    remedy="lower --learning_rate, then `launch resume` or a new run; the last checkpoint is sound",
                    reason=Reason.NAN_LOSS,
                )
            if ranks.leader and (state.step % config.save_interval == 0 or state.step == last or stopped):
                _save(config, attempt, state)
    if stopped and state.step < last:
        attempt.status = "stopped"
        say(f"stopped after step {state.step}, checkpoint saved; the same command goes on from there")
    else:
        if ranks.leader:
            name = written_file(
                state.stage.info,
                arch=config.arch,
                hidden_size=config.hidden_size,
                use_moe=config.use_moe,
                lora_name=getattr(config, "lora_name", ""),
            )
            final = checkpoint.export(
                attempt.dir, name, state.stage.weights(state.model), sidecar=state.sidecar, save_dir=config.save_dir
            )
            say(f"wrote {final}")
        attempt.status = "done"
    ranks.barrier()


def _save(config: TrainConfig, attempt: Attempt, state: TrainState) -> None:
    checkpoint.save(
        attempt.dir,
        step=state.step,
        state={"identity": state.identity, "bad_steps": state.bad_steps, "torch": torch.__version__},
        parameters={name: p.detach() for name, p in trainable(state.model).items()},
        optimizer=state.optimizer.state_dict(),
        keep=config.keep_checkpoints,
    )


def _one_step(
    config: TrainConfig, attempt: Attempt, ranks: World, state: TrainState, stop: _StopFlag
) -> tuple[dict[str, Any], bool]:
    """Compute and apply one update; returns its line for metrics.jsonl and whether ranks agreed to stop after it."""
    began = time.perf_counter()
    step = state.order.step(state.step + 1)
    rate = optim.learning_rate(
        config.lr_schedule,
        config.learning_rate,
        micro_batch=step.last_micro_batch,
        total=state.order.total_micro_batches,
    )
    for group in state.optimizer.param_groups:
        group["lr"] = rate
    count = sum(state.reader.count(samples) for samples in step.micro_batches)
    passes = _my_passes(state, step, ranks)
    waited_s = time.perf_counter() - began
    loss_sum, aux_sum, names = 0.0, 0.0, state.stage.told
    told: dict[str, float] = {}
    for index, one in enumerate(passes):
        last = index == len(passes) - 1
        with nullcontext() if last else ranks.unsynchronised(state.wrapped):
            with _autocast(config, ranks):
                summed, _, more = state.stage.loss(state.wrapped, one.batch.to(ranks.device))
            optimised = summed * (one.weight / max(1, count))
            auxiliary = state.stage.auxiliary(state.model)
            if auxiliary is not None:
                aux_sum += float(auxiliary.detach()) * one.share / len(step.micro_batches)
                optimised = optimised + auxiliary * (one.share / len(step.micro_batches))
            (optimised * ranks.size).backward()
        if one.weight:
            loss_sum += float(summed.detach())
            for name, value in more.items():
                told[name] = told.get(name, 0.0) + float(value)
    asked_to_stop = stop.set or (ranks.leader and attempt.dir.stop.exists())
    sums = ranks.sum([loss_sum, aux_sum, float(asked_to_stop), *(told.get(name, 0.0) for name in names)])
    parameters = list(trainable(state.model).values())
    norm = float(nn.utils.clip_grad_norm_(parameters, config.grad_clip or math.inf)) if count else 0.0
    finite = math.isfinite(norm) and math.isfinite(sums[0] + sums[1])
    if finite and count:
        state.optimizer.step()
    state.bad_steps = 0 if finite else state.bad_steps + 1
    state.optimizer.zero_grad(set_to_none=True)
    state.step += 1
    tokens = sum(state.reader.tokens(samples) for samples in step.micro_batches)
    targets = sum(state.reader.targets(samples) for samples in step.micro_batches)
    elapsed_s = time.perf_counter() - began
    line = {
        "step": step.number,
        "epoch": step.epoch,
        "loss": sums[0] / max(1, count) + sums[1] if finite else None,
        "lr": rate,
        "grad_norm": norm if math.isfinite(norm) else None,
        "tokens": tokens,
        "targets": targets,
        "tokens_per_s": tokens / elapsed_s,
        "data_wait_s": waited_s,
        "time": time.time(),
        **{name: value / max(1, count) for name, value in zip(names, sums[3:], strict=True)},
    }
    if ranks.device.type == "cuda" and (peak := peak_flops(torch.cuda.get_device_name(ranks.device))):
        line["mfu"] = tokens * state.model.flops_per_token() / elapsed_s / (peak * ranks.size)
    if config.use_moe:
        line["aux_loss"] = sums[1]
    return line, sums[2] > 0


@dataclass(frozen=True, kw_only=True)
class Pass:
    """One forward and backward: its batch, whether it counts, and its share of its micro-batch's texts."""

    batch: Batch
    weight: float = 1.0
    share: float = 1.0


def _my_passes(state: TrainState, step: Step, ranks: World) -> list[Pass]:
    """Passes of this rank; one with nothing to do takes part with a pass that weighs nothing."""
    passes = []
    for samples in step.micro_batches[ranks.rank :: ranks.size]:
        batches = list(state.reader.batches(samples))
        texts = sum(batch.documents for batch in batches)
        passes += [Pass(batch=batch, share=batch.documents / texts) for batch in batches]
    return passes or ([Pass(batch=state.reader.silent(), weight=0.0, share=0.0)] if ranks.size > 1 else [])


def _autocast(config: TrainConfig, ranks: World) -> AbstractContextManager[Any]:
    if ranks.device.type == "cpu" or config.dtype == "float32":
        return nullcontext()
    return torch.autocast("cuda", dtype=getattr(torch, config.dtype))
