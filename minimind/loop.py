"""The only training loop: passes, one sum over ranks, one division, one update; checkpoint, stop, export."""

from __future__ import annotations

import math
import signal
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import nn

from minimind import checkpoint, optim
from minimind.attempt import Attempt, PeerFailed
from minimind.catalog import written_file
from minimind.config import TrainConfig, to_plain
from minimind.dist import World, whole_state, world
from minimind.forecast import last_step
from minimind.metrics import Metrics, peak_flops
from minimind.passes import dropout_of, my_passes, not_finite
from minimind.prepare import TrainState, computed_by, prepare
from minimind.pulse import Phase
from minimind.stages.base import Stage, trainable


def train(stage: Stage, config: TrainConfig, argv: list[str]) -> None:
    """Train one stage to its end, or to where it is told to stop.

    Raises:
        RunError: for whatever a user or a machine caused; it is in outcome.json too.
    """
    attempt = Attempt(
        stage.info.name,
        argv,
        run_dir=config.run_dir,
        save_dir=config.save_dir,
        hang_timeout_s=config.hang_timeout,
    )
    with attempt, world(config.device, parallel=config.parallel, hang_timeout_s=config.hang_timeout) as ranks:
        attempt.agreed = True
        attempt.adopt(ranks.share(str(attempt.dir.root)))
        attempt.at(Phase.PREPARE)
        say = print_line if ranks.leader else _silent
        state, problem = None, None
        try:
            state = prepare(stage, config, attempt, ranks, say)
        except Exception as error:  # told below by every rank at once, so that none waits for one that left
            problem = error
        attempt.at(Phase.SUM)
        if ranks.sum([float(problem is not None)])[0]:
            raise problem or PeerFailed
        if state is not None:
            state.wrapped = ranks.wrap(state.model)
            attempt.agreed = False
            try:
                attempt.at(Phase.PREPARE)  # a reference may read all of the data, which takes its time
                with _autocast(config, ranks):
                    stage.begin(state.reader, ranks, state.facts, say)
                _run(config, attempt, ranks, state, say)
            except Exception as error:
                raise attempt.blame(error) from error


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
    last = last_step(config, state.order)
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
            metrics.track(
                project=config.wandb_project,
                stage=state.stage.info.name,
                run_id=attempt.dir.root.name,
                config=to_plain(config),
                folder=attempt.dir.root,
            )
    stopped = False
    with metrics or nullcontext():
        while state.step < last and not stopped:
            line, stopped = _one_step(config, attempt, ranks, state, stop)
            attempt.last_step = state.step
            if metrics:
                metrics.log(line)
            if state.bad_steps >= config.max_bad_steps or (state.bad_steps and state.step == last):
                attempt.agreed = True
                raise not_finite(ranks, state)
            if state.step % config.save_interval == 0 or state.step == last or stopped:
                attempt.at(Phase.SAVE)
                _save(config, attempt, ranks, state)
    attempt.at(Phase.SAVE)
    if stopped and state.step < last:
        attempt.status = "stopped"
        say(f"stopped after step {state.step}, checkpoint saved; the same command goes on from there")
    else:
        weights = ranks.whole(state.stage.weights(state.model))
        if ranks.leader:
            name = written_file(
                state.stage.info,
                arch=config.arch,
                hidden_size=config.hidden_size,
                use_moe=config.use_moe,
                lora_name=getattr(config, "lora_name", ""),
            )
            final = checkpoint.export(attempt.dir, name, weights, sidecar=state.sidecar, save_dir=config.save_dir)
            say(f"wrote {final}")
        attempt.status = "done"
    attempt.at(Phase.SUM, step=state.step + 1)
    ranks.barrier()


def _save(config: TrainConfig, attempt: Attempt, ranks: World, state: TrainState) -> None:
    if not (ranks.leader or ranks.sharded):
        return
    parameters, optimizer = whole_state(ranks, trainable(state.model), state.model, state.optimizer)
    if ranks.leader:
        checkpoint.save(
            attempt.dir,
            step=state.step,
            state={
                "identity": state.identity,
                "bad_steps": state.bad_steps,
                "computed_by": computed_by(config, ranks),
                "losses": list(state.window),
                "mean_loss": math.fsum(state.window) / len(state.window) if state.window else None,
            },
            parameters=parameters,
            optimizer=optimizer,
            keep=config.keep_checkpoints,
        )


def _one_step(
    config: TrainConfig, attempt: Attempt, ranks: World, state: TrainState, stop: _StopFlag
) -> tuple[dict[str, Any], bool]:
    """Compute and apply one update; returns its line for metrics.jsonl and whether ranks agreed to stop after it."""
    began = time.perf_counter()
    step = state.order.step(state.step + 1)
    attempt.at(Phase.READ, step=step.number)
    rate = optim.learning_rate(
        config.lr_schedule,
        config.learning_rate,
        micro_batch=step.last_micro_batch,
        total=state.order.total_micro_batches,
    )
    for group in state.optimizer.param_groups:
        group["lr"] = rate
    count = sum(state.reader.count(samples) for samples in step.micro_batches)
    passes = my_passes(state, step, ranks)
    waited_s = time.perf_counter() - began
    loss_sum, aux_sum, names = 0.0, 0.0, state.stage.told
    told: dict[str, float] = {}
    bad_samples: list[int] = []
    attempt.at(Phase.COMPUTE)
    for index, one in enumerate(passes):
        last = index == len(passes) - 1
        state.model.dropout = dropout_of(config, ranks, step, one)
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
            loss_sum += (value := float(summed.detach()))
            if not math.isfinite(value):
                bad_samples += state.reader.lines_of(one.batch)
            for name, value in more.items():
                told[name] = told.get(name, 0.0) + float(value)
    attempt.at(Phase.SUM)
    asked_to_stop = stop.set or (ranks.leader and attempt.dir.stop.exists())
    sums = ranks.sum([loss_sum, aux_sum, float(asked_to_stop), *(told.get(name, 0.0) for name in names)])
    parameters = list(trainable(state.model).values())
    norm = ranks.norm(nn.utils.clip_grad_norm_(parameters, config.grad_clip or math.inf)) if count else 0.0
    attempt.at(Phase.APPLY)
    finite = math.isfinite(norm) and math.isfinite(sums[0] + sums[1])
    if finite and count:
        state.optimizer.step()
    state.bad_steps = 0 if finite else state.bad_steps + 1
    state.bad_samples = bad_samples
    loss = sums[0] / max(1, count) + sums[1]
    if finite and count:
        state.window.append(loss)
    state.optimizer.zero_grad(set_to_none=True)
    state.step += 1
    tokens = sum(state.reader.tokens(samples) for samples in step.micro_batches)
    targets = sum(state.reader.targets(samples) for samples in step.micro_batches)
    elapsed_s = time.perf_counter() - began
    line = {
        "step": step.number,
        "epoch": step.epoch,
        "loss": loss if finite else None,
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


def _autocast(config: TrainConfig, ranks: World) -> AbstractContextManager[Any]:
    if ranks.device.type == "cpu" or config.dtype == "float32":
        return nullcontext()
    return torch.autocast("cuda", dtype=getattr(torch, config.dtype))
