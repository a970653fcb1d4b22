"""One way home: which files there are, which of them hold still, which are missing, and getting those a name here."""

from __future__ import annotations

import contextlib
import dataclasses
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from launch.errors import Exit, LaunchError
from launch.inventory import Inventory
from launch.sync import generations
from launch.sync.courier import Courier
from launch.sync.listing import WEIGHTS_SUFFIXES, Listing, RemoteFile, hashed, list_again, list_files
from launch.sync.store import Store
from launch.transport import Transport
from launch.voice import Voice, waiting

SPARE_BYTES = 16 << 20
PAUSES_S = (0.0, 0.5, 2.0)
"""Waited before each look at what moves: three looks, then it is given up."""


class Trip:
    """One sync-out; ``run_id`` None means everything."""

    def __init__(
        self, transport: Transport, inventory: Inventory, root: str, run_id: str | None, store: Store, voice: Voice
    ) -> None:
        self._transport, self._inventory, self._root = transport, inventory, root
        self._run_id, self._store, self._voice = run_id, store, voice
        self._host = transport.host.name
        self._began_s: float | None = None
        self._hashed: dict[str, str] = {}
        self._made: set[str] = set()
        self._outdated: set[str] = set()

    def look(self) -> Listing:
        """What there is, of use to this trip; not yet hashed."""
        tops = ["out", f"runs/{self._run_id}" if self._run_id else "runs"]
        with waiting(self._voice, f"waiting for {self._host} to list what lies in {self._root}"):
            listing = list_files(self._transport, self._root, tops)
        self._began_s = listing.now_s
        if self._run_id is None:
            return listing
        exported = {file.length_bytes for file in listing.files if self._exported(file)}
        files = (f for f in listing.files if not f.path.startswith("out/") or f.length_bytes in exported)
        return dataclasses.replace(listing, files=tuple(files))

    def _exported(self, file: RemoteFile) -> bool:
        return file.path.startswith(f"runs/{self._run_id}/export/")

    def check(self, listing: Listing) -> None:
        """There must be something, and room for what is surely new, before anything is hashed or moved.

        Raises:
            LaunchError: NOT_VERIFIED, HOST_NOT_READY.
        """
        if not listing.files:
            raise self._no_weights("has nothing to bring home: no weights", "there is no file of a run either", "")
        self.room(file for file in listing.files if not self._store.has_length(file.path, file.length_bytes))

    def has_weights(self, listing: Listing, *, checkpoints_count: bool) -> bool:
        """Whether there is what a host is rented for: weights for use, made by the run if it is about one."""
        if any(file.weights and (not self._run_id or self._exported(file)) for file in listing.files):
            return True
        return checkpoints_count and any(file.checkpoint for file in listing.files)

    def no_weights(self, brought: int) -> LaunchError:
        """Everything is at home, and it is not what one wants at home."""
        run = f"{self._run_id} " if self._run_id else ""
        return self._no_weights(
            "has no weights; what else it has is here",
            f"{brought} files (logs, metrics, …) are in {self._store.folder}, but without weights no SHA256SUMS "
            "vouches for them",
            f"; if there should be none: `launch sync-out {run}--host {self._host} --without-weights`",
        )

    def _no_weights(self, what: str, why: str, remedy: str) -> LaunchError:
        where = f"runs/{self._run_id}/export" if self._run_id else "out/ or in a run's export/"
        return LaunchError(
            f"{self._host} {what}",
            why=f"{self._root} has no {' or '.join(WEIGHTS_SUFFIXES)} file with anything in it in {where}; {why}",
            remedy=f"see with `launch ps --host {self._host}` how its runs ended{remedy}",
            code=Exit.NOT_VERIFIED,
        )

    def room(self, files: Iterable[RemoteFile]) -> None:
        """There must be space for these beside what they replace.

        Raises:
            LaunchError: HOST_NOT_READY.
        """
        coming = list(files)
        need_bytes = sum(file.length_bytes for file in coming) - self._store.gathered_bytes() + SPARE_BYTES
        if coming and (free_bytes := self._store.free_bytes()) < need_bytes:
            raise LaunchError(
                f"{self._store.folder} has {free_bytes / 1e9:.2f} GB free, the copy needs {need_bytes / 1e9:.2f} GB",
                why=f"{len(coming)} files of {self._host} are not here yet, and what they replace is kept beside them",
                remedy="make room (`launch versions --keep 1` lets old versions go), or give a folder on another disk "
                "with --to",
                code=Exit.HOST_NOT_READY,
            )

    def settled(self, files: Iterable[RemoteFile]) -> tuple[tuple[RemoteFile, ...], set[str]]:
        """The files with the sha256 that held while it was computed, and the paths that will not hold still.

        What goes away meanwhile is let go; of out/ there is only what the run made, when it is about one run.
        """
        files = list(files)
        remembered = ((file, self._store.memory.far(file)) for file in files)
        held = {file.path: dataclasses.replace(file, sha256=digest) for file, digest in remembered if digest}
        moving = {file.path: file for file in files if file.path not in held}
        for pause_s in PAUSES_S if moving else ():
            time.sleep(pause_s)
            known = hashed(self._transport, self._root, moving.values())
            now = list_again(self._transport, self._root, (file.path for file in known))
            self._hashed |= {file.path: file.stamp for file in known}
            held |= {file.path: file for file in known if file.holds_still(now.get(file.path))}
            moving = {file.path: now[file.path] for file in known if file.path in now and file.path not in held}
            if not moving:
                break
        self._made |= {file.sha256 for file in held.values() if self._exported(file)}
        if self._run_id is not None:
            held = {path: f for path, f in held.items() if not path.startswith("out/") or f.sha256 in self._made}
        return tuple(held.values()), set(moving)

    def missing(self, files: Iterable[RemoteFile]) -> tuple[RemoteFile, ...]:
        """What is not at home under its name with exactly those bytes."""
        return tuple(file for file in files if not self._store.matches(file))

    def bring(
        self, files: Iterable[RemoteFile], missing: Sequence[RemoteFile], unstable: set[str]
    ) -> tuple[RemoteFile, ...]:
        """Get and publish what is missing; returns the files as they then are at home.

        What changed while it was copied is listed and hashed anew; what was deleted meanwhile is let go.

        Raises:
            LaunchError: NOT_VERIFIED naming what will not hold still; everything else is published by then.
        """
        kept = {file.path: file for file in files}
        courier = Courier(self._transport, self._inventory, self._root, self._store, self._voice) if missing else None
        given_up = set(unstable)
        for _ in PAUSES_S:
            torn = self._transfer(courier, kept, missing) if courier and missing else set[str]()
            if not torn:
                break
            again, moving = self.settled(list_again(self._transport, self._root, torn).values())
            kept = {path: file for path, file in kept.items() if path not in torn}
            kept |= {file.path: file for file in again}
            given_up |= moving
            missing = self.missing(again)
        else:
            given_up |= torn
        self._store.drop_parts(self._outdated)
        self.refuse(given_up)
        return tuple(kept.values())

    def refuse(self, unstable: Iterable[str]) -> None:
        """Say what will not hold still.

        Raises:
            LaunchError: NOT_VERIFIED when there is anything.
        """
        names = sorted(unstable)
        if names:
            raise LaunchError(
                f"{self._host} keeps changing {', '.join(names[:5])}",
                why="each time it was looked at it was another file than before: something writes it all the time",
                remedy="wait until it is finished, then run the same command again; the rest is already here",
                code=Exit.NOT_VERIFIED,
            )

    def _transfer(self, courier: Courier, kept: Mapping[str, RemoteFile], missing: Sequence[RemoteFile]) -> set[str]:
        """Publish every missing file, each hash moved at most once; returns the paths that did not hold still."""
        needing = {file.path for file in missing}
        here = {file.sha256: file.path for file in kept.values() if file.path not in needing}
        names: dict[str, list[RemoteFile]] = {}
        for file in missing:
            names.setdefault(file.sha256, []).append(file)
        sources = [some[0] for digest, some in names.items() if digest not in here]
        torn: set[str] = set()
        total_bytes = sum(file.length_bytes - self._store.part_bytes(file.sha256) for file in sources)
        with self._voice.moving(f"{self._host} -> {self._store.folder}", total_bytes) as moved:
            try:
                torn = self._arrive(courier, sources, names, moved)
            except LaunchError as error:
                raise self._broken(error) from error
        for digest in here.keys() & names.keys():
            for file in names[digest]:
                source = self._store.folder / here[digest]
                self._store.place(source, file.path, digest, move=False, modified_s=file.modified_s)
        self._store.settle()
        return torn

    def _arrive(
        self,
        courier: Courier,
        sources: Sequence[RemoteFile],
        names: Mapping[str, Sequence[RemoteFile]],
        moved: Callable[[int], None],
    ) -> set[str]:
        torn: set[str] = set()
        with contextlib.closing(courier.bring(sources, moved)) as groups:
            for group in groups:
                torn |= self._publish(group, names)
        return torn

    def _publish(self, group: Sequence[tuple[RemoteFile, bool]], names: Mapping[str, Sequence[RemoteFile]]) -> set[str]:
        torn: set[str] = set()
        now = list_again(self._transport, self._root, [f.path for source, _ in group for f in names[source.sha256]])
        for source, whole in group:
            sure = [file for file in names[source.sha256] if whole and file.holds_still(now.get(file.path))]
            torn |= {file.path for file in names[source.sha256]} - {file.path for file in sure}
            part = self._store.part(source.sha256)
            for file in sure[1:]:
                self._store.place(part, file.path, file.sha256, move=False, modified_s=file.modified_s)
            if sure:
                first = sure[0]
                self._store.place(part, first.path, first.sha256, move=True, modified_s=first.modified_s)
            else:  # still of use when the file was only touched
                self._outdated.add(source.sha256)
        self._store.settle()
        return torn

    def _broken(self, error: LaunchError) -> LaunchError:
        if error.code != Exit.UNREACHABLE:
            return error
        return LaunchError(
            f"the copy from {self._host} is not complete",
            why=f"{error.what}: {error.why}",
            remedy="run the same command again: it goes on where it stopped",
            code=Exit.INCOMPLETE,
        )

    def finish(self, files: Sequence[RemoteFile], *, remember: bool = True) -> None:
        """Say in files that everything is here; with ``remember`` it becomes a generation."""
        told = records(files)
        manifest = {"host": self._host, "root": self._root, "taken_at": self._store.stamp, "files": told}
        if remember:
            generations.record(self._store, host=self._host, run_id=self._run_id, files=told)
        for name in self._store.finish(manifest, {file.path: file.sha256 for file in files}):
            self._voice.say(f"{name} was changed on this machine since it came; it is no longer in SHA256SUMS")
        anew = (file for file in files if self._hashed.get(file.path) == file.stamp)
        self._store.memory.saw(anew, by_s=self._began_s)
        self._store.memory.save(only=None if self._run_id else (file.path for file in files))


def records(files: Iterable[RemoteFile]) -> list[dict[str, Any]]:
    """The files as manifests have them."""
    return [{"path": file.path, "sha256": file.sha256, "bytes": file.length_bytes} for file in files]
