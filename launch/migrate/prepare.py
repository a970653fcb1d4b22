"""The first steps: are both hosts fit, what trains on the target, and the end of what runs on the source."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

from launch import environment
from launch.doctor import Report, Verdict, built_for, examine, targets
from launch.errors import Exit, LaunchError
from launch.executors import choose
from launch.inventory import Host
from launch.migrate import bridge, place
from launch.migrate.move import Move, Step
from launch.migrate.survey import Survey, need_not_come_home, refuse_without_room, survey
from launch.runs import control
from launch.runs.observe import Run, observe
from launch.transport import Transport
from minimind.rundir import State

STOP_TIMEOUT_S = 330.0
WAIT_POLL_S, WAIT_SAY_S = 2.0, 60.0


def look(move: Move, transport: Transport, host: Host) -> Report:
    """The doctor's view of a host."""
    cuda = built_for(move.ends.here.envs / "cuda.lock")
    return examine(transport, cuda=cuda, others=targets(host, move.inventory))


def refuse_unfit(report: Report) -> None:
    """The target must be able to train.

    Raises:
        LaunchError: HOST_NOT_READY with every line that says why not.
    """
    bad = [check for check in report.checks if check.verdict is Verdict.UNFIT]
    if bad:
        raise LaunchError(
            f"{report.host} is not fit to train",
            why="; ".join(f"{check.name}: {check.found}" for check in bad),
            remedy="; ".join(dict.fromkeys(check.remedy for check in bad if check.remedy)),
            code=Exit.HOST_NOT_READY,
        )


class Check(Step):
    """Nothing is changed before this says that all of it can work."""

    name = "check"
    what = "doctor on both hosts, room on both sides"

    def run(self) -> Mapping[str, Any]:
        """The source's faults are said and stop nothing: they may be why it is left."""
        move = self._move
        place.refuse_one(move)
        for transport, host in ((move.target, move.asked.target), (move.source, move.asked.source)):
            report = look(move, transport, host)
            for check in report.checks:
                if check.verdict is not Verdict.OK:
                    move.voice.say(f"{host.name}: {check.verdict}: {check.name}: {check.found}")
            if transport is move.target:
                refuse_unfit(report)
        if bridge.possible(move):
            bridge.close(move)  # of a launcher that was killed, and whose journal may be gone
        found = survey(move)
        self._room(found)
        for odd in found.left:
            move.voice.say(f"stays on {move.asked.source.name}: {odd.name}: {odd.why}")
        return {
            "source_root": move.source_root,
            "target_root": move.target_root,
            "send_bytes": found.send_bytes,
            "data_bytes": found.data_bytes,
            "left": [{"name": odd.name, "why": odd.why} for odd in found.left],
        }

    def _room(self, found: Survey) -> None:
        """Data that goes straight to the target needs no room at home; whether it can is tried when that decides."""
        move = self._move
        try:
            refuse_without_room(move, found)
        except LaunchError:
            origins = need_not_come_home(move, found.data)
            straight_bytes = sum(origin.length_bytes for origin in origins.values())
            refuse_without_room(move, found, straight_bytes=straight_bytes)
            with bridge.opened(move, origins) as way:
                if way is None:
                    raise


class Prepare(Step):
    """The environment that runs have on the target."""

    name = "environment"
    spares = ("data", "stop", "save")  # the source, which may be gone, has no part in it
    what = "the image or the virtual environment, and the code"

    def _tasks(self) -> tuple[environment.Task, ...]:
        site = self._move.site()
        return environment.provide(choose(self._move.asked.target, site.facts).name, site).tasks

    def done(self) -> bool:
        """The target is asked."""
        return self.name in self._move.journal and not self._tasks()

    def run(self) -> Mapping[str, Any]:
        """Each task makes its thing aside and names it when it is whole."""
        move = self._move
        for task in self._tasks():
            task.do(move.target, move.ends.laptop, move.voice)
        site = move.site()
        provided, executor = move.provided(site)
        return {
            "executor": executor,
            "image": provided.image_id,
            "lock_hash": provided.lock_hash,
            "code_hash": provided.code_hash,
        }


class Stop(Step):
    """An agreed checkpoint, and nothing that writes on the source any more."""

    name = "stop"
    what = "the runs of the source save and leave"

    def done(self) -> bool:
        """Once everything is home the source is not asked again: it may be gone."""
        journal = self._move.journal
        return self.name in journal and ("save" in journal or not self._alive())

    def _alive(self) -> list[Run]:
        runs = observe(self._move.source)
        return [run for run in runs if not run.state.state.ended and run.state.state is not State.PREPARED]

    def run(self) -> Mapping[str, Any]:
        """With ``--wait`` they end by themselves. What a killed launcher asked to stop counts, too."""
        move = self._move
        if move.asked.wait:
            self._wait()
        else:
            alive = self._alive()
            move.journal.stopping(run.run_id for run in alive)
            for run in alive:
                ended = control.stop(move.source, run, move.voice, timeout_s=STOP_TIMEOUT_S, now=False)
                move.voice.say(f"{run.run_id} {ended.state.state} at step {ended.state.last_step}")
        return {"stopped": move.journal.stopped}

    def _wait(self) -> None:
        say_at = 0.0
        while alive := self._alive():
            if unknown := [run for run in alive if run.state.state is State.UNKNOWN]:
                raise LaunchError(
                    f"whether {unknown[0].run_id} is alive cannot be told",
                    why=f"its executor does not answer on {unknown[0].host}",
                    remedy="see to the engine there, then run the same command again",
                    code=Exit.HOST_NOT_READY,
                )
            if time.monotonic() >= say_at:
                self._move.voice.say(", ".join(f"{run.run_id} is at step {run.state.last_step}" for run in alive))
                say_at = time.monotonic() + WAIT_SAY_S
            time.sleep(WAIT_POLL_S)
