"""The last steps: the run goes on, or the next stage starts; and what the move changed."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Mapping
from typing import Any

from launch.argv import migrate as argv
from launch.errors import Exit, LaunchError
from launch.inventory import Host
from launch.migrate import bridge
from launch.migrate.move import Step
from launch.runs import control, start
from launch.runs.observe import Run, observe
from launch.sync.store import Store

APPEARS_S = 30.0


class Continue(Step):
    """The one step that must not happen twice: what it starts is written down before.

    What a killed launcher started, and that shows late, is for :meth:`run` to find.
    """

    name = "continue"
    what = "the interrupted run goes on, or the next stage starts"

    def happened(self) -> Run | None:
        """The run, if what was intended has been started."""
        intent = self._move.journal.intent
        if not intent:
            return None
        found = observe(self._move.target, run_id=str(intent["run_id"]))
        return found[0] if found and found[0].state.attempt > intent["attempt"] else None

    def run(self) -> Mapping[str, Any]:
        """Start it, unless a launcher that was killed has done so."""
        move = self._move
        saved = move.journal.facts("save")
        begun = self.happened()
        if begun is None and not move.asked.stage and saved["goes_on"] is None:
            return {"run_id": None}
        try:
            begun = begun or (self._stage() if move.asked.stage else self._resume(str(saved["goes_on"])))
        except LaunchError as error:
            if error.code != Exit.REFUSED or (begun := self._appears()) is None:
                raise
        return self.facts(begun)

    def facts(self, run: Run) -> Mapping[str, Any]:
        """What is written down."""
        return {
            "run_id": run.run_id,
            "attempt": run.state.attempt,
            "nproc": run.handle.get("nproc") or run.spec.get("nproc"),
            "run_dir": run.run_dir,
        }

    def _appears(self) -> Run | None:
        """A start that a killed launcher sent off may hold the run's lock and have no attempt to show yet."""
        deadline = time.monotonic() + APPEARS_S
        while (found := self.happened()) is None and time.monotonic() < deadline:
            time.sleep(0.5)
        return found

    def _resume(self, run_id: str) -> Run:
        move = self._move
        (run,) = observe(move.target, run_id=run_id) or [self._gone(run_id)]
        nproc = move.ranks(move.site().facts, control.spec_of(run))
        move.journal.intend(run_id=run_id, attempt=move.journal.facts("save")["attempts"][run_id])
        resumed = control.resume(move.ends, run, move.laptop, move.voice, nproc=nproc, secrets=move.secrets)
        return resumed or run

    def _stage(self) -> Run:
        move = self._move
        stage = str(move.asked.stage)
        ranks = move.ranks(move.site().facts, None)
        request = move.request(move.asked.target, stage, move.asked.flags, ranks)
        plan = start.plan(request, move.ends, move.laptop)
        run_id = str(move.journal.intent.get("run_id") or plan.spec.run_id)
        move.journal.intend(run_id=run_id, attempt=0)
        if observe(move.target, run_id=run_id):  # its spec is there and no attempt: its start was cut off
            (run,) = observe(move.target, run_id=run_id)
            return control.resume(move.ends, run, move.laptop, move.voice, nproc=None, secrets=move.secrets) or run
        run_dir = f"{plan.facts.root}/runs/{run_id}"
        plan = dataclasses.replace(plan, spec=dataclasses.replace(plan.spec, run_id=run_id), run_dir=run_dir)
        start.carry_out(plan, move.target, move.ends.laptop, move.voice)
        return next(iter(observe(move.target, run_id=run_id)), None) or self._gone(run_id)

    def _gone(self, run_id: str) -> Run:
        self._move.journal.forget("send", "verify")
        raise LaunchError(
            f"{run_id} is not on {self._move.asked.target.name}",
            why="it was sent there, and is gone",
            remedy="run the same command again: it is sent once more",
            code=Exit.INCOMPLETE,
        )


class Report(Step):
    """What changed, and what is left to do by hand."""

    name = "report"
    what = "what the move changed"

    def run(self) -> Mapping[str, Any]:
        """Cleans up on both sides first: nothing of the move itself stays but its journal."""
        move = self._move
        if move.journal.bridged:
            bridge.close(move)
        move.target.run(argv.clean(f"{move.target_root}/{argv.FOLDER}"))
        if move.journal.spool.is_dir():
            with Store(move.journal.spool, stamp="data").locked():
                for path in (*move.journal.spool.glob("*"), *(move.journal.spool / ".sync").glob("*.part")):
                    if path.is_file():
                        path.unlink()
        return self.told()

    def told(self) -> Mapping[str, Any]:
        """The report."""
        move, steps = self._move, self._move.journal.steps
        source, target = move.asked.source, move.asked.target
        saved, smoke, went_on = (steps.get(name, {}) for name in ("save", "smoke", "continue"))
        seconds = sum(float(facts.get("took_s", 0)) for facts in steps.values())
        run_id = went_on.get("run_id")
        return {
            "from": source.name,
            "to": target.name,
            "ended_at": move.now_utc(),
            "run_id": run_id,
            "attempt": went_on.get("attempt"),
            "moved": saved.get("moved", []),
            "stay": saved.get("stays", []),
            "remarks": saved.get("remarks", []),
            "left": steps.get("check", {}).get("left", []),
            "files": steps.get("verify", {}).get("files"),
            "bytes": steps.get("verify", {}).get("bytes"),
            "sent_bytes": sum(int(facts.get("sent_bytes", 0)) for facts in steps.values()),
            "direct_bytes": sum(int(facts.get("direct_bytes", 0)) for facts in steps.values()),
            "fetched_bytes": sum(int(facts.get("fetched_bytes", 0)) for facts in steps.values()),
            "seconds": round(seconds, 1),
            "step_seconds": {name: facts.get("took_s") for name, facts in steps.items()},
            "cost": cost(seconds, source, target),
            "smoke": {key: smoke.get(key) for key in ("nproc", "allreduce", "losses", "tokens_per_s")},
            "environment": dict(steps.get("environment", {})),
            "before": None,
            "after": None,
            **smoke.get("numbers", {}),
            "follow": f"launch logs -f {run_id} --host {target.name}" if run_id else None,
            "release": f"launch release {source.name}" if source.ssh else None,
        }


def cost(seconds: float, *hosts: Host) -> dict[str, float]:
    """What hosts cost in that time, by currency; empty when none has a price."""
    found: dict[str, float] = {}
    for host in hosts:
        if host.price_per_hour is not None:
            found[host.currency] = round(found.get(host.currency, 0.0) + seconds / 3600 * host.price_per_hour, 4)
    return found
