"""What a move would take: names, bytes, room. It only reads, so a dry run and the first step share it."""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from launch import environment, facts
from launch.environment.shipping import Shipment
from launch.errors import Exit, LaunchError
from launch.executors import choose
from launch.migrate import cargo
from launch.migrate.bridge import Origin
from launch.migrate.move import Data, Move, data_of, goes_on, unfinished
from launch.migrate.upload import SMALL_BYTES
from launch.runs.observe import Run, observe
from launch.sync.listing import Odd, RemoteFile, hashed, list_files
from launch.sync.store import Store
from minimind.rundir import State

SPARE_BYTES = 256 << 20
CHECKPOINTS = 2
"""Of the run that goes on: the trial writes one, and the run one before the first is dropped."""


@dataclass(frozen=True, kw_only=True)
class Survey:
    """What there is to move, as it is now; ``fetch_bytes`` and ``send_bytes`` are what still has to travel."""

    facts: facts.HostFacts
    executor: str
    tasks: tuple[environment.Task, ...]
    alive: tuple[Run, ...]
    moved: tuple[str, ...]
    stays: tuple[str, ...]
    goes_on: Run | None
    items: tuple[cargo.Item, ...]
    data: tuple[Data, ...]
    left: tuple[Odd, ...]
    home_bytes: int
    data_home_bytes: int
    send_bytes: int
    room_bytes: int

    @property
    def shipments(self) -> list[Shipment]:
        """Images that have to be brought to the target."""
        return [task for task in self.tasks if isinstance(task, Shipment)]

    @property
    def data_bytes(self) -> int:
        """Of all data that belongs to the move."""
        return sum(data.file.length_bytes for data in self.data)


def survey(move: Move) -> Survey:
    """Look at both hosts and at home.

    Raises:
        LaunchError: REFUSED when the target has something else under a name that is to be given, or has gone on with a
            moved run; HOST_NOT_READY when it cannot be made ready to train.
    """
    if move.target_is_home:
        raise _home_is_for_copies(move)
    site = move.site()
    executor = choose(move.asked.target, site.facts).name
    tasks = environment.provide(executor, site).tasks
    runs = observe(move.source)
    listing = list_files(move.source, move.source_root, ["out", "runs"])
    going = unfinished(runs, listing.files)
    alive = [run for run in runs if not run.state.state.ended and run.state.state is not State.PREPARED]
    stops = [] if move.asked.wait else [run.run_id for run in alive]
    moved = [run.run_id for run in going if run.state.state.ended or run.run_id in stops]
    on = None if move.asked.stage else goes_on(runs, moved, stops)
    chosen = next((run for run in runs if run.run_id == on), None)
    move.ranks(site.facts, None)
    files = hashed(move.source, move.source_root, _wanted(listing.files, moved))
    items = _items(move, files, moved)
    data, missing = data_of(move, going)
    offered = [*items, *(one.item(move.journal.spool) for one in data)]
    _no_run_went_further(move, going)
    there = move.upload.there(offered)
    refuse_foreign(move, offered, there)
    lacking = [item for item, digest in zip(offered, there, strict=True) if digest != item.sha256]
    sending = _contents((item.sha256, item.length_bytes) for item in lacking)
    store = Store(move.home, stamp="survey")
    home = [file for file in files if not store.matches(file)]
    spooled = [one for one in data if one.local is None and not (move.journal.spool / one.file.sha256).is_file()]
    checkpoint = max((_checkpoint_bytes(files, run_id) for run_id in moved), default=0)
    return Survey(
        facts=site.facts,
        executor=executor,
        tasks=tasks,
        alive=tuple(alive),
        moved=tuple(moved),
        stays=tuple(run.run_id for run in runs if run.run_id not in moved),
        goes_on=chosen,
        items=tuple(items),
        data=tuple(data),
        left=(
            *(odd for odd in listing.odd if not odd.why.startswith("temporary")),
            *(Odd(name=path, why="no regular file that can be read") for path in missing),
        ),
        home_bytes=_contents((file.sha256, file.length_bytes) for file in home),
        data_home_bytes=_contents((one.file.sha256, one.file.length_bytes) for one in spooled),
        send_bytes=sending,
        room_bytes=sending + CHECKPOINTS * checkpoint + SPARE_BYTES,
    )


def _home_is_for_copies(move: Move) -> LaunchError:
    name = move.asked.target.name
    return LaunchError(
        f"{name} has {move.home} as its root, where the copies of all hosts are",
        why=f"{move.asked.source.name} keeps its runs: the next sync-out would replace what went on here by them",
        remedy=f'say root = "local" below [hosts.{name}] in launch.toml: a run that goes on has a folder of its own',
        code=Exit.REFUSED,
    )


def _there(path: Path) -> Path:
    return next(folder for folder in (path, *path.parents) if folder.is_dir())


def _disk(path: Path) -> int:
    return _there(path).stat().st_dev


def data_now(move: Move) -> list[Data]:
    """Data sets and what unfinished runs read, as the source has them now."""
    listing = list_files(move.source, move.source_root, ["runs"])
    return data_of(move, unfinished(observe(move.source), listing.files))[0]


def straight(data: Iterable[Data]) -> dict[str, Origin]:
    """What may go straight from the source to the target, by its sha256: what is large."""
    return {
        one.file.sha256: Origin(path=f"/{one.file.path}", length_bytes=one.file.length_bytes)
        for one in data
        if one.file.length_bytes > SMALL_BYTES
    }


def need_not_come_home(move: Move, data: Iterable[Data]) -> dict[str, Origin]:
    """Of those the ones that would have to come here first if they could not go straight."""
    return straight(one for one in data if one.local is None and not (move.journal.spool / one.file.sha256).is_file())


def _wanted(files: Iterable[RemoteFile], moved: Sequence[str]) -> list[RemoteFile]:
    runs = tuple(f"runs/{run_id}/" for run_id in moved)
    return [file for file in files if file.path.startswith(("out/", *runs)) and not cargo.STAYS.fullmatch(file.path)]


def _items(move: Move, files: Sequence[RemoteFile], moved: Sequence[str]) -> list[cargo.Item]:
    told = [{"path": file.path, "sha256": file.sha256, "bytes": file.length_bytes} for file in files]
    return cargo.of_home(told, move.home, move.target_root, moved)


def _contents(pairs: Iterable[tuple[str, int]]) -> int:
    return sum(dict(pairs).values())


def _checkpoint_bytes(files: Iterable[RemoteFile], run_id: str) -> int:
    sizes: dict[str, int] = {}
    for file in files:
        if file.checkpoint and file.path.startswith(f"runs/{run_id}/"):
            sizes[file.checkpoint] = sizes.get(file.checkpoint, 0) + file.length_bytes
    return max(sizes.values(), default=0)


def _no_run_went_further(move: Move, going: Sequence[Run]) -> None:
    theirs = {run.run_id: run for run in observe(move.target)}
    for run in going:
        there = theirs.get(run.run_id)
        if there and there.state.attempt > run.state.attempt:
            raise LaunchError(
                f"{run.run_id} has gone on on {move.asked.target.name}",
                why=f"it is at attempt {there.state.attempt}, step {there.state.last_step} there; on "
                f"{move.asked.source.name} at attempt {run.state.attempt}, step {run.state.last_step}",
                remedy=f"launch resume {run.run_id} --host {move.asked.target.name}",
                code=Exit.REFUSED,
            )


def refuse_foreign(move: Move, items: Sequence[cargo.Item], there: Sequence[str | None]) -> None:
    """What the target has of its own, and other than ours, is not to be replaced.

    Raises:
        LaunchError: REFUSED.
    """
    root, sent = f"{move.target_root}/", move.journal.sent
    foreign = [
        item.target.removeprefix(root)
        for item, digest in zip(items, there, strict=True)
        if digest not in (None, item.sha256, sent.get(item.target)) and not item.target.startswith(f"{root}runs/")
    ]
    if foreign:
        name = move.asked.target.name
        raise LaunchError(
            f"{name} has other files of the same names: {', '.join(sorted(foreign)[:5])}",
            why="what lies there may be the only copy, so it is not replaced",
            remedy=f"bring it home (`launch sync-out --host {name} --to FOLDER`), move it away there, and try again",
            code=Exit.REFUSED,
        )


def refuse_without_room(move: Move, found: Survey, *, straight_bytes: int = 0) -> None:
    """Both ends must have room before anything moves; what goes straight to the target needs none at home.

    Raises:
        LaunchError: HOST_NOT_READY.
    """
    free, target = found.facts.free_bytes, move.asked.target.name
    home_bytes = found.home_bytes + found.data_home_bytes - straight_bytes
    shared = move.asked.target.ssh is None and _disk(move.home) == _disk(Path(move.target_root))
    room_bytes = found.room_bytes + (home_bytes if shared else 0)
    if free is not None and free < room_bytes:
        raise LaunchError(
            f"{target} has {free / 1e9:.2f} GB free, the move needs {room_bytes / 1e9:.2f} GB",
            why=f"{found.send_bytes / 1e9:.2f} GB are to be sent to {move.target_root}, the rest is for checkpoints",
            remedy=f"make room there, or set root of {target} to a larger disk; nothing was moved",
            code=Exit.HOST_NOT_READY,
        )
    need = home_bytes + SPARE_BYTES
    free = shutil.disk_usage(_there(move.home)).free
    if free < need:
        raise LaunchError(
            f"{move.home} has {free / 1e9:.2f} GB free, the move needs {need / 1e9:.2f} GB",
            why="everything comes home before it goes on: that copy is what is verified",
            remedy="make room there (`launch versions --keep 1` lets old versions go); nothing was moved",
            code=Exit.HOST_NOT_READY,
        )
