"""What would be lost if the host were gone now."""

from __future__ import annotations

import dataclasses
import json
import re
import shlex
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from launch.errors import Exit, LaunchError
from launch.inventory import Inventory
from launch.release.around import beside, stray_weights
from launch.runs.observe import Run, observe
from launch.sync import generations
from launch.sync.home import shares
from launch.sync.listing import WEIGHTS_SUFFIXES, Listing, RemoteFile
from launch.sync.store import MANIFEST, Store, read_sums
from launch.sync.trip import Trip
from launch.transport import Transport, host_path
from launch.voice import Voice
from launch.weights import Unusable, examine
from minimind.durable import SUMS, sha256_file
from minimind.rundir import State

OF_NO_USE = re.compile(r"runs/[^/]+/(?:beat\.json|stop|lock/.*)")
"""What a run writes for its own time only."""

TESTED = (*WEIGHTS_SUFFIXES, ".pt")
"""What has to be usable; ``.pt`` are the parts of checkpoints."""


@dataclass(frozen=True, kw_only=True)
class Gap:
    """One thing that would be lost, or that cannot be told; ``path`` is below the root, or the name of a run."""

    path: str
    why: str
    repair: str


@dataclass(frozen=True, kw_only=True)
class Findings:
    """What a check found.

    ``elsewhere`` are paths outside out/ and runs/ with their bytes (None: not measured in time): nothing here looks
    after them.
    """

    host: str
    root: str
    folder: Path
    files: int
    bytes: int
    gaps: tuple[Gap, ...]
    runs: tuple[Run, ...]
    elsewhere: tuple[tuple[str, int | None], ...]

    def to_dict(self) -> dict[str, Any]:
        """For --json."""
        return {
            "host": self.host,
            "root": self.root,
            "home": str(self.folder),
            "ready": not self.gaps,
            "files": self.files,
            "bytes": self.bytes,
            "gaps": [dataclasses.asdict(gap) for gap in self.gaps],
            "repair": self.repair,
            "elsewhere": [{"path": path, "bytes": length} for path, length in self.elsewhere],
        }

    @property
    def repair(self) -> str | None:
        """The one command to run first."""
        return next((gap.repair for gap in self.gaps), None)

    def refuse(self) -> None:
        """Say that the host must stay.

        Raises:
            LaunchError: REFUSED when there is a gap.
        """
        if self.gaps:
            shown = "\n".join(f"    {gap.path}: {gap.why}" for gap in self.gaps[:20])
            more = f"\n    and {len(self.gaps) - 20} more" if self.gaps[20:] else ""
            raise LaunchError(
                f"{self.host} must not be released: {len(self.gaps)} thing(s) would be lost",
                why=f"\n{shown}{more}",
                remedy=f"{self.repair}, then the same again",
                code=Exit.REFUSED,
            )


def check(
    transport: Transport,
    inventory: Inventory,
    *,
    folder: Path,
    voice: Voice,
    look_elsewhere: bool = True,
    without_weights: bool = False,
) -> Findings:
    """Compare everything that the host has with what is at home, all of it hashed now on both sides.

    ``look_elsewhere`` measures what lies outside out/ and runs/, which may take 20 s. At the end the host is looked at
    once more: what has begun or come meanwhile is a gap. A host that has neither weights nor
    checkpoints is a gap, unless ``without_weights`` says that this is known.

    Raises:
        LaunchError: UNREACHABLE; a gap is no exception.
    """
    host, root = transport.host.name, host_path(transport, transport.host.root)
    sync = f"launch sync-out --host {host} --to {shlex.quote(str(folder))}"
    none_known = f"{sync} --without-weights"
    sync = none_known if without_weights else sync
    elsewhere = beside(transport, root) if look_elsewhere else ()
    runs = observe(transport)
    gaps = _alive(runs)
    trip = Trip(transport, inventory, root, None, Store(folder, stamp="check"), voice)
    listing = _look(trip, gaps, host)
    gaps += [
        Gap(path=odd.name, why=f"it stays on the host: {odd.why}", repair=f"ssh there and see to {odd.name}")
        for odd in listing.odd
        if not odd.why.startswith("temporary") or odd.name.endswith(WEIGHTS_SUFFIXES)
    ]
    if shared := shares(transport, root, folder):
        why = "the copy here and what the host has are the same files (a link, a network disk): there is no copy"
        gaps.append(Gap(path=shared, why=why, repair=f"launch sync-out --host {host} --to FOLDER"))
    gaps += [
        Gap(path=name, why="nothing brings home what is not in out/", repair=f"move it below {root}/out, then {sync}")
        for name in stray_weights(transport, root)
    ]
    if listing.files and not without_weights and not any(file.weights or file.checkpoint for file in listing.files):
        why = "there are no weights at all on the host, and no checkpoint: its runs failed, or they lie elsewhere"
        repair = f"look for them on {host}; if there are none, `{none_known}` and --without-weights here too"
        gaps.append(Gap(path="out", why=why, repair=repair))
    wanted = list(_wanted(listing.files))
    voice.say(f"comparing {len(wanted)} files of {host} with {folder}")
    files, moving = trip.settled(wanted)
    seen = {file.path for file in files} | moving
    gone = [file.path for file in wanted if file.path not in seen]
    gaps += [Gap(path=path, why="it does not hold still", repair=f"launch ps --host {host}") for path in sorted(moving)]
    gaps += [Gap(path=path, why="it cannot be read, or just vanished", repair=sync) for path in gone]
    recorded = _Recorded(folder, host, root)
    gaps += [Gap(path=MANIFEST, why=why, repair=sync) for why in recorded.troubles]
    tested: dict[str, str] = {}
    for file in files:
        copy, why = recorded.copy_of(file)
        if copy is None:
            gaps.append(Gap(path=file.path, why=why, repair=sync))
        elif why := _unusable(copy, file.sha256, tested):
            repair = f"if it is worth nothing, move {file.path} out of {root} on {host}"
            gaps.append(Gap(path=file.path, why=why, repair=repair))
    known = {run.run_id for run in runs if run.state.state.ended}
    now = observe(transport)
    gaps += [gap for gap in _alive(now) if gap not in gaps]
    late = "it came or changed while it was compared"
    gaps += [
        Gap(path=run.run_id, why=late, repair=sync) for run in now if run.state.state.ended and run.run_id not in known
    ]
    hashed = {file.path: file for file in files}
    gaps += [
        Gap(path=file.path, why=late, repair=sync)
        for file in _wanted(trip.look().files if listing.files else ())
        if file.path not in gone and file.path not in moving and _changed(hashed.get(file.path), file)
    ]
    return Findings(
        host=host,
        root=root,
        folder=folder,
        files=len(files),
        bytes=sum(file.length_bytes for file in files),
        gaps=tuple(gaps),
        runs=tuple(runs),
        elsewhere=elsewhere,
    )


def _alive(runs: Iterable[Run]) -> list[Gap]:
    return [
        Gap(path=run.run_id, why=f"it is {run.state.state}", repair=f"launch stop {run.run_id}")
        for run in runs
        if not run.state.state.ended and run.state.state is not State.PREPARED
    ]


def _changed(before: RemoteFile | None, now: RemoteFile) -> bool:
    return before is None or not before.holds_still(now) or now.length_bytes != before.length_bytes


def _look(trip: Trip, gaps: list[Gap], host: str) -> Listing:
    repair = f"correct root of {host} in launch.toml; if nothing was ever made there, give it back by hand"
    try:
        listing = trip.look()
    except LaunchError as error:
        if error.code is not Exit.NOT_VERIFIED:
            raise
        gaps.append(Gap(path="root", why=error.why, repair=repair))
        return Listing(files=(), odd=())
    if not listing.files:
        gaps.append(Gap(path="root", why="there is nothing of ours in it: it may be the wrong one", repair=repair))
    return listing


def _wanted(files: Iterable[RemoteFile]) -> Iterator[RemoteFile]:
    """All but what is of no use any more, and checkpoints before each run's newest."""
    files = list(files)
    newest: dict[str, str] = {}
    for folder in sorted({file.checkpoint for file in files if file.checkpoint}):
        newest[folder.rpartition("/")[0]] = folder
    for file in files:
        mine = file.checkpoint
        if not OF_NO_USE.fullmatch(file.path) and (mine is None or newest[mine.rpartition("/")[0]] == mine):
            yield file


class _Recorded:
    """What SHA256SUMS, manifest.json and the generations say, against the files themselves."""

    def __init__(self, folder: Path, host: str, root: str) -> None:
        self._folder = folder
        self._sums = read_sums(folder / SUMS)
        self._said = {(file.path, file.sha256) for g in generations.read(folder) if g.host == host for file in g.files}
        self.troubles = list(self._manifest(host, root))

    def _manifest(self, host: str, root: str) -> Iterator[str]:
        try:
            manifest = json.loads((self._folder / MANIFEST).read_bytes())
            listed = {str(item["path"]): str(item["sha256"]) for item in manifest["files"]}
            place: Mapping[str, Any] = {"host": manifest["host"], "root": manifest["root"]}
        except FileNotFoundError:
            yield "it is not there: nothing was synced into this folder, or not to its end"
            return
        except (OSError, ValueError, KeyError, TypeError):
            yield "it cannot be read, so it was edited"
            return
        wrong = [path for path, digest in listed.items() if self._sums.get(path, digest) != digest]
        if wrong:
            yield f"it and {SUMS} say different things of {wrong[0]}: one of the two was edited"
        if place == {"host": host, "root": root}:
            self._said |= set(listed.items())

    def copy_of(self, file: RemoteFile) -> tuple[Path | None, str]:
        """The copy at home, or why there is none that counts.

        What a later sync, perhaps of another host, replaced under that name counts while it is kept.
        """
        here = self._folder / file.path
        if not here.is_file() or here.is_symlink():
            why = "there is no copy here"
        elif here.stat().st_size < file.length_bytes or sha256_file(here) != file.sha256:
            why = "the host has other bytes than the copy here"
        elif self._sums.get(file.path) != file.sha256:
            return None, f"{SUMS} does not vouch for it"
        elif (file.path, file.sha256) not in self._said:
            return None, "no manifest of a sync from this host lists it with these bytes"
        else:
            return here, ""
        if (file.path, file.sha256) not in self._said:
            return None, why
        kept = generations.Kept(path=file.path, sha256=file.sha256, length_bytes=file.length_bytes)
        return generations.holder(self._folder, kept), why


def _unusable(path: Path, sha256: str, tested: dict[str, str]) -> str:
    if path.suffix not in TESTED:
        return ""
    if sha256 not in tested:
        tested[sha256] = ""
        try:
            examine(path)
        except Unusable as error:
            tested[sha256] = f"the copy could not be used: {error}"
    return tested[sha256]
