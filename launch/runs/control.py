"""Ending runs and going on with them."""

from __future__ import annotations

import dataclasses
import json
import os
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from launch import environment
from launch.errors import Exit, LaunchError
from launch.executors import EXECUTORS, Environment, Executor
from launch.runs import by_hand, forecast, names
from launch.runs.observe import Run, observe
from launch.runs.start import Ends, Laptop, attempt_of
from launch.secrets import Secret
from launch.transport import Transport
from launch.voice import Voice
from minimind.rundir import BEAT_STALE_S, BY_HAND, RunError, RunSpec, State, to_json

POLL_S = 0.5
UNSTOP = 'rm -f -- "$1/stop"'


def stop(transport: Transport, run: Run, voice: Voice, *, timeout_s: float, now: bool) -> Run:
    """Ask a run to save and leave, or end it at once, and wait until it has ended; returns it as it is then.

    Raises:
        LaunchError: INCOMPLETE when it has not ended within ``timeout_s``; it has been asked all the same.
            HOST_NOT_READY at once when nobody can tell whether it lives; REFUSED when one started by hand seems to.
    """
    if run.state.state.ended or run.state.state is State.PREPARED:
        return run
    if run.state.state is State.UNKNOWN:
        if not now:  # if it lives, it sees this
            transport.publish(f"{run.run_dir}/stop", b"")
        if run.spec.get("executor") == BY_HAND:
            return _settled(transport, run, now=now)
        raise _unknown(run, "stop was asked for all the same; " if not now else "nothing was ended; ")
    if now:
        _executor(run).stop(transport, run.run_id, {**run.handle, "attempt": run.state.attempt})
    else:
        transport.publish(f"{run.run_dir}/stop", b"")
        voice.say(f"asked {run.run_id} to save and leave")
    deadline = time.monotonic() + timeout_s
    while not (found := _again(transport, run)).state.state.ended:
        if time.monotonic() > deadline:
            raise LaunchError(
                f"{run.run_id} has not ended within {timeout_s:.0f} s",
                why=f"it is {found.state.state} at step {found.state.last_step}; it was asked to save and leave",
                remedy=f"wait with `launch stop {run.run_id}`, or end it unsaved with `launch stop --now {run.run_id}`",
                code=Exit.INCOMPLETE,
            )
        if found.state.state is State.UNKNOWN:
            raise _unknown(run, "it was asked to stop; ")
        time.sleep(POLL_S)
    if now and found.state.state is State.LOST:  # its supervisor could not say so any more: nobody else will
        _record(transport, found, _ended_by_force(found))
        found = _again(transport, run)
    return found


def _settled(transport: Transport, run: Run, *, now: bool) -> Run:
    """One that was started by hand, elsewhere: only who started it knows. ``now`` takes their word that it ended."""
    signs = by_hand.look(transport, run.root, [run.run_id]).get(run.run_id)
    if signs is None:
        return _again(transport, run)
    known = f"{signs.who}, {signs.here} was asked; {signs.heard}, its last step is {run.state.last_step}"
    if signs.quiet_s is not None and signs.quiet_s < BEAT_STALE_S:
        raise LaunchError(
            f"{run.run_id} seems to be alive",
            why=known,
            remedy=f"end it where it runs; if it has ended, the same {BEAT_STALE_S:.0f} s after its last word",
            code=Exit.REFUSED,
        )
    if not now:
        raise LaunchError(
            f"whether {run.run_id} is alive cannot be told",
            why=f"it was started by hand: {known}. It was asked to stop all the same",
            remedy=f"look where it was started; if it has ended there, `launch stop --now {run.run_id}` records that",
            code=Exit.HOST_NOT_READY,
        )
    why = f"`launch stop --now`: whether it lived could not be told, and its user says that it has ended; {known}"
    _record(transport, run, {**_ended_by_force(run), "what": "declared to have ended", "why": why})
    return _again(transport, run)


def _record(transport: Transport, run: Run, ended: Mapping[str, Any]) -> None:
    transport.publish(f"{run.run_dir}/attempts/{run.state.attempt}/exit.json", to_json(ended))


def _ended_by_force(run: Run) -> dict[str, Any]:
    hand = run.spec.get("executor") == BY_HAND
    who = "it was started by hand and could not say so" if hand else "its supervisor did not answer and was killed, too"
    again = "the same command again" if hand else "`launch resume`"
    return {
        "attempt": run.state.attempt,
        "code": -9,
        "reason": None,
        "stopped": "now",
        "what": "stopped at once, as it was asked to",
        "why": f"`launch stop --now`; {who}",
        "remedy": f"{again} goes on from the last checkpoint; the steps since then are lost",
        "weights": [],
        "last_step": run.state.last_step,
        "ended_at": time.time(),
    }


def _unknown(run: Run, done: str) -> LaunchError:
    if run.spec.get("executor") == BY_HAND:
        return LaunchError(
            f"whether {run.run_id} is alive cannot be told",
            why=f"{done}it was started by hand, perhaps on another machine than {run.host}",
            remedy=f"look where it was started; `launch stop {run.run_id}` says what is known",
            code=Exit.HOST_NOT_READY,
        )
    return LaunchError(
        f"whether {run.run_id} is alive cannot be told",
        why=f"{done}its {run.spec.get('executor')} executor does not answer on {run.host}",
        remedy=f"start the engine on {run.host} again, then repeat this; `launch hosts` shows whether it answers",
        code=Exit.HOST_NOT_READY,
    )


def resume(
    ends: Ends,
    run: Run,
    laptop: Laptop,
    voice: Voice,
    *,
    nproc: int | None,
    secrets: Callable[[Sequence[str]], Mapping[str, Secret]],
) -> Run | None:
    """Start the next attempt of a run that is not alive; None when it has succeeded and there is nothing to do.

    Its environment is made again where it is gone. Its host says first what is left of it, at this number of ranks, and
    what is certain to fail.

    ``secrets`` finds the secrets of these names on this laptop.

    Raises:
        LaunchError: REFUSED while it is alive, HOST_NOT_READY when its environment is gone.
    """
    state = run.state.state
    if state is State.SUCCEEDED:
        return None
    if state is State.UNKNOWN:
        raise _unknown(run, "")
    if not (state.ended or state is State.PREPARED):
        raise LaunchError(
            f"{run.run_id} is alive already",
            why=f"it is {state} at step {run.state.last_step}",
            remedy=f"follow it with `launch logs -f {run.run_id}`, or stop it first with `launch stop {run.run_id}`",
            code=Exit.REFUSED,
        )
    spec, transport, executor, root = spec_of(run), ends.host, _executor(run), run.root
    hand = secrets(spec.secret_names)
    wanted = Environment(image_id=spec.image_digest, lock_hash=spec.lock_hash, code_hash=spec.code_hash)
    site, _ = ends.visit((), wanted)
    provided = environment.recall(executor.name, site, wanted).carried_out(transport, ends.laptop, voice)
    if spec.name:
        names.claim(transport, root, spec.name, run.run_id, owner=laptop.owner, pid=os.getpid())
    number = run.state.attempt + 1
    memory = site.facts.memory_dir
    attempt = attempt_of(spec, run.run_dir, root, provided, number=number, nproc=nproc, hand=hand, memory=memory)
    planned = dataclasses.replace(spec, nproc=nproc or spec.nproc)
    forecast.ask(executor, transport, site.facts, attempt, planned, voice)
    transport.run(["sh", "-c", UNSTOP, "sh", run.run_dir])
    executor.start(transport, site.facts, attempt)
    return _again(transport, run)


def last_words(transport: Transport, run: Run) -> str:
    """What the executor itself kept of a run that left no log."""
    return _executor(run).logs(transport, run.run_id, {**run.handle, "attempt": run.state.attempt})


def _executor(run: Run) -> Executor:
    return EXECUTORS.get(str(run.spec.get("executor")), EXECUTORS["venv"])


def _again(transport: Transport, run: Run) -> Run:
    found = observe(transport, root=run.root, run_id=run.run_id)
    if found:
        return found[0]
    raise LaunchError(
        f"{run.run_id} is no longer on {run.host}",
        why=f"{run.run_dir} is gone",
        remedy="launch ps --all",
        code=Exit.INVALID,
    )


def spec_of(run: Run) -> RunSpec:
    """The run's spec.

    Raises:
        LaunchError: INVALID when its spec.json is none.
    """
    try:
        return RunSpec.from_json(json.dumps(dict(run.spec)).encode())
    except RunError as error:
        raise LaunchError(
            f"{run.run_id} cannot be resumed", why=error.why, remedy=error.remedy, code=Exit.INVALID
        ) from error
