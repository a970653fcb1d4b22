"""The only training loop: passes, one sum over ranks, one division, one update; checkpoint, stop, export."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import nullcontext

import torch

from minimind import checkpoint, history, lora, probe
from minimind.attempt import Attempt, PeerFailed
from minimind.catalog import written_file
from minimind.config import TrainConfig, to_plain
from minimind.dist import World, world
from minimind.efficiency import Account, Setting
from minimind.feed import Feed
from minimind.flops import peak_flops, training_cost
from minimind.forecast import last_step, measure
from minimind.identity import computed_by, say_what_else_computes
from minimind.metrics import Metrics
from minimind.passes import not_finite
from minimind.precision import autocast, computed_in
from minimind.prepare import TrainState, prepare
from minimind.pulse import Phase
from minimind.saving import Saver, keep_sound, save, to_come_bytes
from minimind.stages.base import Stage
from minimind.tracing import Tracer
from minimind.update import StopFlag, fill_memory, hold_sigterm, leave_on_sigterm, one_step


def train(stage: Stage, config: TrainConfig, argv: list[str]) -> None:
    """Train one stage to its end, or to where it is told to stop.

    Raises:
        RunError: for whatever a user or a machine caused; it is in outcome.json too.
    """
    hold_sigterm(True)
    try:
        attempt = Attempt(
            stage.info.name,
            argv,
            run_dir=config.run_dir,
            save_dir=config.save_dir,
            hang_timeout_s=config.hang_timeout,
        )
    except BaseException:
        hold_sigterm(False)
        raise
    with attempt:
        if attempt.size == 1 and not attempt.supervised:  # else it is torchrun's word about another rank's end
            leave_on_sigterm()
        hold_sigterm(False)
        _train(stage, config, attempt)


def _train(stage: Stage, config: TrainConfig, attempt: Attempt) -> None:
    with world(config.device, parallel=config.parallel, hang_timeout_s=config.hang_timeout) as ranks:
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
        if failed := ranks.sum([float(problem is not None)])[0]:
            attempt.everyone = failed == ranks.size
            raise problem or PeerFailed
        if state is not None:
            attempt.agreed = attempt.everyone = False
            try:
                if ranks.leader:  # every rank has read them by now
                    checkpoint.set_aside(attempt.dir, state.damaged)
                state.wrapped = ranks.wrap(state.model)
                attempt.at(Phase.PREPARE)  # a reference may read all of the data, which takes its time
                state.attention = probe.choose(config, state.model, ranks, say)
                say_what_else_computes(state.computed_before, computed_by(config, ranks, state.attention), say)
                with autocast(config, ranks.device):
                    stage.begin(state.model, state.reader, ranks, state.facts, say)
                if config.max_tokens_per_batch == "auto":
                    fill_memory(config, ranks, state, say)
                _run(config, attempt, ranks, state, say)
            except Exception as error:
                blamed = attempt.blame(error)
                if blamed is error:  # `raise error from error` would make it its own cause
                    raise
                raise blamed from error


def print_line(text: str) -> None:
    """Say something on the console at once."""
    print(text, flush=True)


def _silent(text: str) -> None:
    pass


def _run(
    config: TrainConfig,
    attempt: Attempt,
    ranks: World,
    state: TrainState,
    say: Callable[[str], None],
) -> None:
    last = last_step(config, state.order)
    attempt.last_step = state.step
    stop = StopFlag()
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
    account = Account(setting=_setting(config, ranks, state), say=say) if ranks.leader else None
    stopped, final = False, state.step >= last
    with (
        metrics or nullcontext(),
        Saver(attempt.dir, keep=config.keep_checkpoints, metrics=metrics) as saver,
        Feed(state, ranks, last=last) as feed,
        Tracer(
            attempt.dir.profile,
            on=config.profile and ranks.leader,
            device=ranks.device,
            say=say,
            before=lambda: _finish(saver, attempt),
            needed_bytes=lambda saved: to_come_bytes(config, state, attempt.dir, saved=saved),
        ) as tracer,
    ):
        saved_s = traced_s = 0.0
        while not final and not stopped:
            saver.check()
            with tracer.step(state.step + 1):
                line, stopped = one_step(config, attempt, ranks, state, feed, stop, account)
            line["save_s"], saved_s = saver.waited_s - saved_s, saver.waited_s
            attempt.last_step, final = state.step, state.step >= last
            began = time.perf_counter()
            if metrics:
                metrics.log(line)
            log_s = time.perf_counter() - began
            if state.bad_steps >= (min(config.max_bad_steps, state.step) if final else config.max_bad_steps):
                error = not_finite(ranks, state)
                attempt.at(Phase.SAVE)
                keep_sound(config, ranks, state, saver)
                attempt.agreed = attempt.everyone = True
                raise error
            if state.step % config.save_interval == 0 or final or stopped:
                attempt.at(Phase.SAVE)
                save(config, ranks, state, saver, aside=not (final or stopped))
            if account:
                account.settle(log_s=log_s, save_s=saver.waited_s - saved_s, trace_s=tracer.took_s - traced_s)
            traced_s = tracer.took_s
    if account:
        alone = _alone(config, ranks, state, attempt)
        account.tell(saves=saver.saves, save_s=saver.waited_s, one_rank=alone, ranks=ranks.size)
    attempt.at(Phase.SAVE)
    if stopped and state.step < last:
        attempt.status = "stopped"
        say(f"stopped after step {state.step}, checkpoint saved; the same command goes on from there")
    else:
        if state.bad_steps:
            learned = f"these are the weights of step {state.step - state.bad_steps}"
            say(f"warning: the gradient was not finite in the last {state.bad_steps} steps of the run; {learned}")
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


def _finish(saver: Saver, attempt: Attempt) -> None:
    """Before a trace is written: no checkpoint is on its way that could meet a disk which the trace fills."""
    attempt.at(Phase.SAVE)
    saver.wait()


def _setting(config: TrainConfig, ranks: World, state: TrainState) -> Setting:
    on_gpu = ranks.device.type == "cuda"
    dtype = computed_in(config, ranks.device)
    peak = peak_flops(torch.cuda.get_device_name(ranks.device), dtype) if on_gpu else None
    return Setting(
        cost=training_cost(state.model.config, adapters=lora.ranks(state.model) or None),
        parameters=sum(p.numel() for p in state.model.parameters()),
        dtype=dtype,
        pack=config.pack,
        fill=1.0 if config.pack else measure(state.reader, name="").fill,
        log_interval=config.log_interval,
        compiled=config.use_compile,
        peak_flops=peak * ranks.size if peak else None,
    )


def _alone(config: TrainConfig, ranks: World, state: TrainState, attempt: Attempt) -> tuple[float, str] | None:
    """How fast one rank was, and in which run, where an earlier one of this work on such a device tells."""
    if ranks.size == 1:
        return None
    device = computed_by(config, ranks, state.attention)["device"]
    found = history.rate(
        state.stage.info.name, config, 1, read=state.identity, computed_on=device, but=attempt.dir.root.name
    )
    return (found[0], found[1]) if found[0] and found[1] else None
