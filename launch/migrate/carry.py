"""The steps that move bytes: data by way of here, everything that was made home, from there to the target, verified."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from launch.errors import Exit, LaunchError
from launch.migrate import bridge, cargo
from launch.migrate.bridge import Origin
from launch.migrate.move import Data, Move, Step, goes_on, unfinished
from launch.migrate.survey import data_now, refuse_foreign, straight
from launch.migrate.upload import SMALL_BYTES
from launch.release import check
from launch.runs.observe import observe
from launch.sync import sync_out
from launch.sync.courier import Courier
from launch.sync.listing import RemoteFile, list_again
from launch.sync.store import Store
from launch.sync.trip import Trip, records
from minimind.durable import sha256_file
from minimind.rundir import RunSpec


class Carrying(Step):
    """Whether names that were given on the target are still there is seen by their lengths."""

    def done(self) -> bool:
        """Written down, and there."""
        items = self._move.journal.facts(self.name).get("items")
        if items is None:
            return False
        paths = {str(item["target"]).lstrip("/"): int(item["bytes"]) for item in items}
        now = list_again(self._move.target, "/", paths)
        return all(path in now and now[path].length_bytes == length for path, length in paths.items())

    def _across(self, items: Sequence[cargo.Item], origins: Mapping[str, Origin]) -> tuple[list[str | None], int]:
        """What the target has after what can go there straight has gone, and how many bytes those were."""
        move = self._move
        there = move.upload.there(items)
        refuse_foreign(move, items, there)  # once more: it may have begun something of its own meanwhile
        move.journal.sending({item.target: item.sha256 for item in items})
        lacking = {item.sha256 for item, digest in zip(items, there, strict=True) if digest != item.sha256}
        with bridge.opened(move, {digest: one for digest, one in origins.items() if digest in lacking}) as way:
            if way is None:
                return there, 0
            return move.upload.across(items, there, way.carry), way.carried_bytes


class SendData(Carrying):
    """Data sets and what the moved runs read; what home lacks comes here first, into the spool."""

    name = "data"
    what = "data sets and other files that runs read"

    def run(self) -> Mapping[str, Any]:
        """The spool goes once everything is verified on the target."""
        move = self._move
        data = data_now(move)
        items = [one.item(move.journal.spool) for one in data]
        there, direct_bytes = self._across(items, straight(data))
        lacking = [one for one, digest in zip(data, there, strict=True) if digest != one.file.sha256]
        return {
            "direct_bytes": direct_bytes,
            "fetched_bytes": self._fetch([one for one in lacking if one.local is None]),
            "sent_bytes": move.upload.bring(items, there),
            "items": [_told(item) for item in items],
        }

    def _fetch(self, wanted: Sequence[Data]) -> int:
        move = self._move
        spool = move.journal.spool
        missing = {one.file.sha256: one.file for one in wanted if not _holds(spool / one.file.sha256, one)}
        if not missing:
            return 0
        store = Store(spool, stamp="data")
        torn = []
        total_bytes = sum(file.length_bytes for file in missing.values())
        with store.locked():
            courier = Courier(move.source, move.inventory, "/", store, move.voice)
            with (
                move.voice.moving(f"data of {move.asked.source.name} -> {spool}", total_bytes) as moved,
                contextlib.closing(courier.bring(list(missing.values()), moved)) as groups,
            ):
                for group in groups:
                    for file, whole in group:
                        if whole:
                            store.place(store.part(file.sha256), file.sha256, file.sha256, move=True)
                        else:
                            torn.append(f"/{file.path}")
                    store.settle()
        if torn:
            raise LaunchError(
                f"{move.asked.source.name} keeps changing {', '.join(torn[:5])}",
                why="other bytes came than were hashed there a moment ago",
                remedy="wait until it is finished, then run the same command again",
                code=Exit.NOT_VERIFIED,
            )
        return total_bytes


def _holds(path: Path, one: Data) -> bool:
    return path.is_file() and path.stat().st_size == one.file.length_bytes and sha256_file(path) == one.file.sha256


class Save(Step):
    """Everything that was made on the source is here, hashed on both sides."""

    name = "save"
    what = "out/ and runs/ come home, verified"

    def done(self) -> bool:
        """Written down, and here; a file that another sync replaced since is brought again."""
        facts = self._move.journal.facts(self.name)
        return bool(facts) and all(_length(self._move.home / f["path"]) == f["bytes"] for f in facts["files"])

    def run(self) -> Mapping[str, Any]:
        """A sync-out, and the comparison of release-check; and the choice of what moves."""
        move = self._move
        runs = observe(move.source)
        files, fetched_bytes, remarks = self._in_place() if move.source_is_home else self._brought()
        moved = [run.run_id for run in unfinished(runs, files)]
        on = goes_on(runs, moved, move.journal.stopped)
        newest = max((run.run_id for run in runs), default=None)
        return {
            "fetched_bytes": fetched_bytes,
            "files": records(files),
            "moved": moved,
            "goes_on": on,
            "attempts": {run.run_id: run.state.attempt for run in runs},
            "newest": newest,
            "stays": [run.run_id for run in runs if run.run_id not in moved],
            "remarks": remarks,
        }

    def _in_place(self) -> tuple[Sequence[RemoteFile], int, list[str]]:
        """Home is where all of it is: it is hashed, and nothing is copied."""
        move, store = self._move, Store(self._move.home, stamp="save")
        trip = Trip(move.source, move.inventory, move.source_root, None, store, move.voice)
        listing = trip.look()
        trip.check(listing)
        files, unstable = trip.settled(listing.files)
        trip.refuse(unstable)
        return files, 0, []

    def _brought(self) -> tuple[Sequence[RemoteFile], int, list[str]]:
        move = self._move
        report = sync_out(
            move.source,
            move.inventory,
            folder=move.home,
            run_id=None,
            voice=move.voice,
            now_utc=move.now_utc(),
            checkpoints_count=True,
        )
        findings = check(move.source, move.inventory, folder=move.home, voice=move.voice, look_elsewhere=False)
        ours = ("launch sync-out", "launch ps", "launch stop")  # the others' repair is the user's to choose
        lacking = [gap for gap in findings.gaps if gap.repair.startswith(ours)]
        remarks = [f"{gap.path}: {gap.why}" for gap in findings.gaps if gap not in lacking]
        for remark in remarks:
            move.voice.say(f"{move.asked.source.name}: {remark}")
        if lacking:
            raise LaunchError(
                f"{len(lacking)} thing(s) of {move.asked.source.name} are not safe at home",
                why="; ".join(f"{gap.path}: {gap.why}" for gap in lacking[:5]),
                remedy="run the same command again",
                code=Exit.NOT_VERIFIED,
            )
        return report.files, report.fetched_bytes, remarks


def _length(path: Path) -> int | None:
    return path.stat().st_size if path.is_file() and not path.is_symlink() else None


def original_spec(move: Move, run_id: str) -> bytes:
    """spec.json of a run as it came from the source.

    Raises:
        LaunchError: NOT_VERIFIED when the copy here is another one.
    """
    name = f"runs/{run_id}/spec.json"
    wanted = {f["path"]: f["sha256"] for f in move.journal.facts("save")["files"]}
    path = move.home / name
    if name not in wanted or not path.is_file() or sha256_file(path) != wanted[name]:
        move.journal.forget("save")
        raise LaunchError(
            f"{path} is not what came from {move.asked.source.name}",
            why="it was changed here, or another sync brought another one",
            remedy="run the same command again: it is brought once more",
            code=Exit.NOT_VERIFIED,
        )
    return path.read_bytes()


def spec_on_target(move: Move, run_id: str) -> RunSpec:
    """A moved run's spec for the target."""
    spec = cargo.spec_of(original_spec(move, run_id), run_id)
    provided, executor = move.provided(move.site())
    return move.rebased(spec, provided, executor)


def to_send(move: Move) -> list[cargo.Item]:
    """out/ and the moved runs, with the texts that are made for the target."""
    facts = move.journal.facts("save")
    items = cargo.of_home(facts["files"], move.home, move.target_root, facts["moved"])
    for run_id in facts["moved"]:
        folder, before = f"{move.target_root}/runs/{run_id}", move.home / "runs" / run_id / cargo.MOVED
        text = original_spec(move, run_id)
        told = cargo.history(
            before.read_bytes() if before.is_file() else b"",
            source=move.asked.source.name,
            source_root=move.source_root,
            at_utc=str(move.journal.began_at),
            spec=text,
        )
        items.append(cargo.written(f"{folder}/{cargo.MOVED}", told))
        items.append(cargo.written(f"{folder}/spec.json", spec_on_target(move, run_id).to_json(), mode="444"))
    return items


class Send(Carrying):
    """From the copy at home to the target."""

    name = "send"
    what = "out/, the tokenizer and the unfinished runs go to the target"

    def run(self) -> Mapping[str, Any]:
        """A run's spec.json goes last: without it nobody takes the directory for a run that can go on."""
        move = self._move
        facts = move.journal.facts("save")
        _refuse_runs_that_went_on(move, facts)
        items = to_send(move)
        specs = [item for item in items if item.mode == "444"]
        rest = [item for item in items if item.mode != "444"]
        there, direct_bytes = self._across(rest, self._origins(rest))
        sent_bytes = move.upload.bring(rest, there) + move.upload.bring(specs)
        return {
            "direct_bytes": direct_bytes,
            "sent_bytes": sent_bytes,
            "items": [_told(item) for item in items],
            "runs": facts["moved"],
        }

    def _origins(self, items: Sequence[cargo.Item]) -> dict[str, Origin]:
        """Where the source has what is large, by its sha256; if it is gone or has changed, home's copy is sent."""
        home, root = self._move.home, self._move.source_root
        return {
            item.sha256: Origin(path=f"{root}/{item.local.relative_to(home)}", length_bytes=item.length_bytes)
            for item in items
            if item.local is not None and item.length_bytes > SMALL_BYTES
        }


def _refuse_runs_that_went_on(move: Move, facts: Mapping[str, Any]) -> None:
    before = facts["attempts"]
    for run in observe(move.target):
        if run.run_id in facts["moved"] and run.state.attempt > before[run.run_id]:
            raise LaunchError(
                f"{run.run_id} has gone on on {move.asked.target.name}",
                why=f"it is at attempt {run.state.attempt} there, and came with {before[run.run_id]}",
                remedy=f"launch resume {run.run_id} --host {move.asked.target.name}",
                code=Exit.REFUSED,
            )


class Verify(Step):
    """Everything that was sent, hashed anew on the target."""

    name = "verify"
    what = "a fresh sha256 on the target of all that was sent"

    def run(self) -> Mapping[str, Any]:
        """What differs makes the steps that sent it undone."""
        move = self._move
        items = [*move.journal.facts("data")["items"], *move.journal.facts("send")["items"]]
        expected = [cargo.Item(target=i["target"], sha256=i["sha256"], length_bytes=i["bytes"]) for i in items]
        there = move.upload.there(expected)
        wrong = [item.target for item, digest in zip(expected, there, strict=True) if digest != item.sha256]
        if wrong:
            move.journal.forget("data", "send")
            raise LaunchError(
                f"{len(wrong)} of {len(expected)} files on {move.asked.target.name} are not what was sent",
                why=f"another sha256: {', '.join(wrong[:5])}",
                remedy="run the same command again: they are sent once more; if it happens again, check its disk",
                code=Exit.NOT_VERIFIED,
            )
        return {"files": len(expected), "bytes": sum(item.length_bytes for item in expected)}


def _told(item: cargo.Item) -> dict[str, Any]:
    return {"target": item.target, "sha256": item.sha256, "bytes": item.length_bytes}
