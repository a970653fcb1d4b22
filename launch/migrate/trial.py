"""The step that tries everything before it is needed: ranks that talk, and three steps of training on the real data."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from launch import environment, flags, inputs
from launch.argv import docker
from launch.argv import migrate as argv
from launch.doctor import Verdict, deep
from launch.errors import Exit, LaunchError
from launch.executors import EXECUTORS
from launch.migrate import cargo, numbers
from launch.migrate.carry import spec_on_target
from launch.migrate.move import Move, Step, Subject
from launch.runs import start
from launch.runs.observe import Run, observe
from minimind.catalog import CATALOG
from minimind.rundir import RunSpec, State, new_run_id

STEPS, SAVED_AT = 3, 2
POLL_S, SAY_S = 0.5, 30.0
_NOWHERE = Path("/nonexistent")


def subject(move: Move, site: environment.Site) -> Subject | None:
    """The run that goes on, the stage that starts, or else the source's newest run; None without any.

    Files of this laptop that a new stage needs and no side has had yet are pushed here.
    """
    saved = move.journal.facts("save")
    if move.asked.stage:
        ranks = move.ranks(site.facts, None)
        request = move.request(move.asked.target, move.asked.stage, move.asked.flags, ranks)
        plan = start.plan(request, move.ends, move.laptop)
        inputs.push(plan.inputs.files, move.target, move.voice)
        return Subject(spec=plan.spec, nproc=ranks, environment=plan.provision.environment, run_dir=plan.run_dir)
    run_id = saved["goes_on"] or max(saved["moved"], default=saved["newest"])
    if run_id is None:
        return None
    spec = spec_on_target(move, run_id)
    reads = [cargo.Item(target=i["path"], sha256=i["sha256"], length_bytes=i["bytes"]) for i in spec.inputs]
    if saved["goes_on"] is None and [item.sha256 for item in reads] != move.upload.there(reads):
        return None  # of a run that does not go on, what it read need not have been moved
    provided, _ = move.provided(site)
    run_dir = f"{move.target_root}/runs/{run_id}"
    return Subject(spec=spec, nproc=move.ranks(site.facts, spec), environment=provided, run_dir=run_dir)


class Smoke(Step):
    """A run of its own below ``<root>/.migrate/``, which goes afterwards. The data that it tokenises stays."""

    name = "smoke"
    what = "an all-reduce, and three training steps on the real data"

    def __init__(self, move: Move) -> None:
        super().__init__(move)
        self._root = f"{move.target_root}/{argv.FOLDER}/smoke"

    def run(self) -> Mapping[str, Any]:
        """What a killed launcher left of an earlier trial is ended and removed first."""
        move = self._move
        self._clear()
        site = move.site()
        tried = subject(move, site)
        nproc = tried.nproc if tried else move.ranks(site.facts, None)
        talk = self._allreduce(site, nproc)
        if tried is None or tried.spec.stage == "tokenizer":
            move.voice.say("no training goes on or starts, and no earlier one has its data there: no trial of one")
            self._clear()
            return {"nproc": nproc, "allreduce": talk, "steps": 0}
        rows = self._train(tried, site)
        rate = max(float(row.get("tokens_per_s") or 0) for row in rows)
        found = {
            "nproc": nproc,
            "allreduce": talk,
            "steps": len(rows),
            "losses": [row["loss"] for row in rows],
            "tokens_per_s": rate or None,
            "numbers": numbers.before_and_after(move, tried, site.facts, rate=rate or None),
        }
        self._clear()
        return found

    def _allreduce(self, site: environment.Site, nproc: int) -> str:
        move = self._move
        if nproc == 1:
            return "one rank: there is nobody to talk to"
        talk = deep.allreduce(site, ranks=nproc)
        if talk.verdict is Verdict.UNFIT:
            raise self._unfit(f"the ranks of {move.asked.target.name} cannot work together", talk.found, talk.remedy)
        move.voice.say(f"all-reduce: {talk.found}")
        return talk.found

    def _clear(self) -> None:
        move = self._move
        for run in observe(move.target, root=self._root):
            if not run.state.state.ended and run.state.state is not State.PREPARED:
                executor = EXECUTORS.get(str(run.spec.get("executor")), EXECUTORS["venv"])
                executor.stop(move.target, run.run_id, {**run.handle, "attempt": run.state.attempt})
            if run.spec.get("executor") == "docker":
                for number in range(1, run.state.attempt + 1):
                    move.target.run(docker.remove(docker.container_name(run.run_id, number)), check=False)
        move.target.run(argv.clean(self._root))

    def _train(self, tried: Subject, site: environment.Site) -> list[dict[str, Any]]:
        """Two steps, saved; then a second attempt takes the third step from what was saved."""
        move = self._move
        now_utc = time.strftime("%Y%m%d-%H%M%S", time.gmtime(site.facts.now))
        run_id = new_run_id(tried.spec.stage, now_utc=now_utc)
        folder = f"{self._root}/runs/{run_id}"
        for number, steps in ((1, SAVED_AT), (2, STEPS)):
            spec = trial_spec(tried.spec, run_id=run_id, nproc=tried.nproc, steps=steps, save_dir=f"{self._root}/out")
            attempt = start.attempt_of(
                spec,
                folder,
                move.target_root,
                tried.environment,
                number=number,
                nproc=None,
                hand={},
                memory=None,
                new=True,
            )
            EXECUTORS[spec.executor].start(move.target, site.facts, attempt)
            self._wait(run_id, number)
        rows = self._rows(folder)
        steps_seen = [row.get("step") for row in rows]
        if steps_seen != list(range(1, STEPS + 1)):
            raise self._unfit(
                f"the trial on {move.asked.target.name} did not go on from its checkpoint",
                f"it took the steps {steps_seen} instead of 1, 2, and after a restart 3",
                None,
            )
        if bad := [row for row in rows if not _finite(row.get("loss"))]:
            raise self._unfit(
                f"the trial on {move.asked.target.name} has no finite loss",
                f"step {bad[0]['step']}: {bad[0].get('loss')}",
                f"launch doctor {move.asked.target.name} --deep",
            )
        return rows

    def _wait(self, run_id: str, number: int) -> None:
        move = self._move
        say_at = time.monotonic() + SAY_S
        while True:
            found: Run | None = next(iter(observe(move.target, root=self._root, run_id=run_id)), None)
            if found and found.state.attempt == number and found.state.state.ended:
                break
            if found and found.state.state is State.UNKNOWN:
                raise self._unfit("nobody can tell how the trial goes", "its executor does not answer", None)
            if time.monotonic() > say_at:
                move.voice.say(f"the trial is {found.state.state if found else 'not to be seen yet'}")
                say_at = time.monotonic() + SAY_S
            time.sleep(POLL_S)
        if found.state.state is not State.SUCCEEDED:
            said = found.said
            raise self._unfit(
                f"the trial on {move.asked.target.name} failed: "
                + str(said.get("what") or found.state.reason or found.state.state),
                str(said.get("why") or self._last_words(found, number)),
                str(said["remedy"]) if said.get("remedy") else None,
            )

    def _last_words(self, run: Run, number: int) -> str:
        words = ["tail", "-n", "5", f"{run.run_dir}/attempts/{number}/log.txt"]
        return self._move.target.read(words, check=False).text or "it left no log"

    def _rows(self, folder: str) -> list[dict[str, Any]]:
        text = self._move.target.read(["cat", f"{folder}/metrics.jsonl"]).text
        return [dict(json.loads(line)) for line in text.splitlines() if line.startswith("{")]

    def _unfit(self, what: str, why: str, remedy: str | None) -> LaunchError:
        source = self._move.asked.source.name
        run_id = self._move.journal.facts("save").get("goes_on")
        back = f"; meanwhile `launch resume {run_id} --host {source}` goes on there" if run_id else ""
        return LaunchError(
            what,
            why=why,
            remedy=f"{remedy or 'see to that'}, then run the same command again{back}",
            code=Exit.HOST_NOT_READY,
        )


def trial_spec(spec: RunSpec, *, run_id: str, nproc: int, steps: int, save_dir: str) -> RunSpec:
    """A few steps of a run, in a folder of its own: the same batch on every rank, no word to wandb, weights aside."""
    out = flags.value_of(spec.flags, "save_dir") or ""
    places = inputs.Places(host="", home=_NOWHERE, cwd=_NOWHERE, out=out)
    words: Sequence[str] = spec.flags
    for want in inputs.wants(CATALOG[spec.stage], spec.flags, places):
        if want.flag in ("from_weight", "teacher_weight") and want.target:  # given by name: it lies in the real out/
            words = flags.with_value(words, want.flag, want.target)
    for name in ("use_wandb", "no_use_wandb", "from_resume", "out_dir", "run_dir"):
        words = flags.without(words, name)
    asked = {"save_dir": save_dir, "max_steps": str(steps), "save_interval": str(SAVED_AT), "epochs": str(STEPS)}
    for name, value in asked.items():
        words = flags.with_value(words, name, value)
    return replace(spec, run_id=run_id, flags=list(words), nproc=nproc, name=None, secret_names=[])


def _finite(loss: object) -> bool:
    return isinstance(loss, int | float) and math.isfinite(loss)
