"""One optimiser update: passes, one sum over ranks, one division; what it was, for metrics.jsonl."""

from __future__ import annotations

import math
import signal
import time
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from minimind import fitting, optim
from minimind.attempt import Attempt
from minimind.batches import Batch
from minimind.config import TrainConfig
from minimind.dist import World
from minimind.efficiency import Account
from minimind.feed import Feed
from minimind.passes import Pass, dropout_of, evened_out, shares
from minimind.precision import autocast
from minimind.prepare import TrainState
from minimind.pulse import Phase
from minimind.sizes import FP32
from minimind.stages.base import trainable


def hold_sigterm(held: bool) -> None:
    """Let SIGTERM wait while the run directory is made: afterwards there is somewhere to say that it came."""
    signal.pthread_sigmask(signal.SIG_BLOCK if held else signal.SIG_UNBLOCK, {signal.SIGTERM})


def leave_on_sigterm() -> None:
    """Until the first step SIGTERM is what Ctrl-C is: there is nothing to save, and an outcome to write down."""

    def leave(number: int, frame: object) -> None:
        raise KeyboardInterrupt

    signal.signal(signal.SIGTERM, leave)


class StopFlag:
    """SIGTERM and SIGINT only set it from the first step on; ranks agree on it in the step's sum."""

    def __init__(self) -> None:
        self.set = False
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._on_signal)

    def _on_signal(self, number: int, frame: object) -> None:
        self.set = True


def one_step(
    config: TrainConfig,
    attempt: Attempt,
    ranks: World,
    state: TrainState,
    feed: Feed,
    stop: StopFlag,
    account: Account | None,
) -> tuple[dict[str, Any], bool]:
    """Compute and apply one update; returns its line for metrics.jsonl and whether ranks agreed to stop after it."""
    began = time.perf_counter()
    attempt.at(Phase.READ, step=state.step + 1)
    ready = feed.take(state.step + 1)
    waited_s = time.perf_counter() - began
    attempt.at(Phase.COMPUTE)  # from here on it may be another rank that is waited for
    step, count = ready.step, ready.count
    passes = evened_out(state, ready.passes, ranks)
    rate = optim.learning_rate(
        config.lr_schedule,
        config.learning_rate,
        micro_batch=step.last_micro_batch,
        total=state.order.total_micro_batches,
    )
    for group in state.optimizer.param_groups:
        group["lr"] = rate
    names = state.stage.told
    kept: list[list[Tensor]] = []  # of each pass: its loss, the auxiliary one, what else is told
    for index, one in enumerate(passes):
        last = index == len(passes) - 1
        state.model.dropout = dropout_of(config, ranks, step, one)
        with nullcontext() if last else ranks.unsynchronised(state.wrapped):
            with autocast(config, ranks.device):
                summed, _, more = state.stage.loss(state.wrapped, one.batch.to(ranks.device))
            optimised = summed * (one.weight / max(1, count))
            auxiliary = state.stage.auxiliary(state.model)
            if auxiliary is not None:
                optimised = optimised + auxiliary * (one.share / len(step.micro_batches))
            state.scale.apply(optimised * ranks.size).backward()
        zero = summed.new_zeros(())
        made = (summed, zero if auxiliary is None else auxiliary, *(more.get(name, zero) for name in names))
        kept.append([value.detach() for value in made])
    loss_sum, aux_sum, told, bad_samples = 0.0, 0.0, dict.fromkeys(names, 0.0), list[int]()
    for one, (value, auxiliary_value, *others) in zip(passes, _numbers(kept), strict=True):
        aux_sum += auxiliary_value * one.share / len(step.micro_batches)
        if one.weight:
            loss_sum += value
            if not math.isfinite(value):
                bad_samples += state.reader.lines_of(one.batch)
            for name, other in zip(names, others, strict=True):
                told[name] += other
    attempt.at(Phase.SUM)
    asked_to_stop = stop.set or (ranks.leader and attempt.dir.stop.exists())
    sums = ranks.sum([loss_sum, aux_sum, float(asked_to_stop), *told.values()])
    parameters = list(trainable(state.model).values())
    norm, summed_loss = 0.0, sums[0] + sums[1]
    if count:
        state.scale.undo(state.optimizer)
        norm = ranks.norm(nn.utils.clip_grad_norm_(parameters, config.grad_clip or math.inf))
    attempt.at(Phase.APPLY)
    finite, overflow = math.isfinite(summed_loss), False
    if count:
        finite, overflow = state.scale.settle(state.optimizer, loss=summed_loss, norm=norm)
    if not overflow:
        state.bad_steps = 0 if finite else state.bad_steps + 1
    state.bad_samples = bad_samples
    loss = sums[0] / max(1, count) + sums[1]
    if finite and count:
        state.window.append(loss)
    state.optimizer.zero_grad(set_to_none=True)
    state.step += 1
    elapsed_s = time.perf_counter() - began
    line = {
        "step": step.number,
        "epoch": step.epoch,
        "loss": loss if finite or overflow else None,
        "lr": rate,
        "grad_norm": norm if math.isfinite(norm) else None,
        "tokens": ready.tokens,
        "targets": ready.targets,
        "tokens_per_s": ready.tokens / elapsed_s,
        "data_wait_s": waited_s,
        "time": time.time(),
        **{name: value / max(1, count) for name, value in zip(names, sums[3:], strict=True)},
    }
    if account:
        flops = account.setting.cost.of(positions=ready.positions, pairs=ready.pairs, targets=ready.targets)
        pass_tokens = sum(one.batch.tokens for one in passes)
        account.step(
            tokens=ready.tokens,
            passes=len(passes),
            pass_tokens=pass_tokens,
            flops=flops,
            data_wait_s=waited_s,
            step_s=elapsed_s,
        )
        if account.setting.peak_flops:
            line["mfu"] = flops / elapsed_s / account.setting.peak_flops
    if config.use_moe:
        line["aux_loss"] = sums[1]
    return line, sums[2] > 0


def fill_memory(config: TrainConfig, ranks: World, state: TrainState, say: Callable[[str], None]) -> None:
    """Let the reader cut a rank's step into the largest passes that this GPU's memory holds.

    Micro-batches are joined first, except for a mixture of experts, whose balancing loss is a mean over each.
    """
    reader, order = state.reader, state.order
    reader.joins = not config.use_moe
    looked_at = np.linspace(1, order.steps_per_epoch, min(order.steps_per_epoch, fitting.STEPS_LOOKED_AT)).astype(int)
    parts = [
        part for number in looked_at for share in shares(reader, order.step(int(number)), ranks.size) for part in share
    ]

    def attempt(batch: Batch) -> None:
        state.model.dropout = dropout_of(config, ranks, order.step(1), Pass(batch=batch))
        with ranks.unsynchronised(state.wrapped):
            with autocast(config, ranks.device):
                summed, _, _ = state.stage.loss(state.wrapped, batch.to(ranks.device))
            auxiliary = state.stage.auxiliary(state.model)
            (summed if auxiliary is None else summed + auxiliary).backward()

    trained = sum(parameter.numel() for parameter in trainable(state.model).values())
    reader.max_tokens_per_batch = fitting.find(
        reader,
        parts,
        ranks,
        attempt=attempt,
        clear=lambda: state.optimizer.zero_grad(set_to_none=True),
        reserved_bytes=0 if state.optimizer.state else 2 * FP32 * trained,
        say=say,
    )


def _numbers(kept: list[list[Tensor]]) -> list[list[float]]:
    """Scalars as Python's numbers, exactly; the device is waited for once."""
    if not kept:
        return []
    numbers = torch.stack([value.double() for row in kept for value in row])
    rows: list[list[float]] = numbers.view(len(kept), -1).tolist()
    return rows
