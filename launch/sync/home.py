"""Bringing a host's weights and runs home: list, transfer, verify, publish."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from launch.errors import Exit, LaunchError
from launch.inventory import Inventory
from launch.sync.courier import Courier
from launch.sync.listing import WEIGHTS_SUFFIXES, Listing, Odd, RemoteFile, hashed, list_files
from launch.sync.store import Store
from launch.transport import Transport, host_path
from launch.voice import Voice

SPARE_BYTES = 16 << 20


@dataclass(frozen=True, kw_only=True)
class Report:
    """What a sync-out did, or would do: ``files`` are all of the host's, ``fetched`` those that were not here."""

    host: str
    root: str
    folder: Path
    files: tuple[RemoteFile, ...]
    fetched: tuple[RemoteFile, ...]
    left_alone: tuple[Odd, ...]

    @property
    def fetched_bytes(self) -> int:
        """What travels: each content once."""
        return sum({file.sha256: file.length_bytes for file in self.fetched}.values())

    def to_dict(self) -> dict[str, Any]:
        """For --json."""
        return {
            "host": self.host,
            "root": self.root,
            "to": str(self.folder),
            "files": _records(self.files),
            "fetched": [file.path for file in self.fetched],
            "fetched_bytes": self.fetched_bytes,
            "left_alone": [dataclasses.asdict(odd) for odd in self.left_alone],
        }


def sync_out(
    transport: Transport,
    inventory: Inventory,
    *,
    folder: Path,
    run_id: str | None,
    voice: Voice,
    now_utc: str,
    dry: bool = False,
) -> Report:
    """Mirror the host's out/ and runs/ (or one run and the weights made by it) into ``folder``.

    ``now_utc`` (``%Y%m%dT%H%M%SZ``) names the folder that keeps what is replaced. With ``dry`` nothing is written
    anywhere: the report says what would be fetched.

    Raises:
        LaunchError: NOT_VERIFIED without weights or when a file will not hold still, HOST_NOT_READY without room here,
            REFUSED when another sync writes there, INCOMPLETE when the link broke.
    """
    root = host_path(transport, transport.host.root)
    _not_onto_itself(transport, root, folder)
    store = Store(folder, stamp=now_utc)
    trip = _Trip(transport, inventory, root, run_id, store, voice)
    try:
        listing = trip.look()
        trip.check(listing)
        voice.say(f"comparing {len(listing.files)} files on {transport.host.name}")
        files = trip.hashed(listing.files)
        missing = trip.missing(files)
        if not dry:
            with store.locked():
                files = trip.bring(files, missing)
                trip.finish(files, now_utc)
    except OSError as error:
        raise LaunchError(
            f"{folder} cannot be written",
            why=str(error),
            remedy="make room and permissions there, or give another folder with --to",
            code=Exit.HOST_NOT_READY,
        ) from error
    return Report(
        host=transport.host.name, root=root, folder=folder, files=files, fetched=missing, left_alone=listing.odd
    )


class _Trip:
    """One sync-out; ``run_id`` None means everything."""

    def __init__(
        self, transport: Transport, inventory: Inventory, root: str, run_id: str | None, store: Store, voice: Voice
    ) -> None:
        self._transport, self._inventory, self._root = transport, inventory, root
        self._run_id, self._store, self._voice = run_id, store, voice
        self._host = transport.host.name

    def look(self) -> Listing:
        """What there is, of use to this trip; not yet hashed."""
        listing = list_files(self._transport, self._root, ["out", f"runs/{self._run_id}" if self._run_id else "runs"])
        if self._run_id is None:
            return listing
        exported = {file.length_bytes for file in listing.files if self._exported(file)}
        files = (f for f in listing.files if not f.path.startswith("out/") or f.length_bytes in exported)
        return dataclasses.replace(listing, files=tuple(files))

    def _exported(self, file: RemoteFile) -> bool:
        return file.path.startswith(f"runs/{self._run_id}/export/")

    def check(self, listing: Listing) -> None:
        """There must be weights, and room for them, before anything is moved."""
        wanted = [file for file in listing.files if file.weights and (not self._run_id or self._exported(file))]
        if not wanted:
            raise LaunchError(
                f"{self._host} has nothing to bring home: no weights",
                why=f"{self._root} has no {' or '.join(WEIGHTS_SUFFIXES)} file in "
                + (f"runs/{self._run_id}/export" if self._run_id else "out/ or in a run's export/"),
                remedy=f"see with `launch ps --host {self._host}` how its runs ended",
                code=Exit.NOT_VERIFIED,
            )
        at_home = {file.identity for file in listing.files if self._store.has_length(file.path, file.length_bytes)}
        coming = {file.identity: file.length_bytes for file in listing.files if file.identity not in at_home}
        need_bytes = sum(coming.values()) - self._store.gathered_bytes() + SPARE_BYTES
        if coming and (free_bytes := self._store.free_bytes()) < need_bytes:
            raise LaunchError(
                f"{self._store.folder} has {free_bytes / 1e9:.1f} GB free, the copy needs {need_bytes / 1e9:.1f} GB",
                why=f"{len(coming)} files of {self._host} are not here yet",
                remedy="make room, or give a folder on another disk with --to",
                code=Exit.HOST_NOT_READY,
            )

    def hashed(self, files: Iterable[RemoteFile]) -> tuple[RemoteFile, ...]:
        """The files with their sha256; of out/ only what the run made, when it is about one run."""
        known = hashed(self._transport, self._root, files)
        if self._run_id is None:
            return known
        made = {file.sha256 for file in known if self._exported(file)}
        return tuple(file for file in known if not file.path.startswith("out/") or file.sha256 in made)

    def missing(self, files: Iterable[RemoteFile]) -> tuple[RemoteFile, ...]:
        """What is not at home under its name with exactly those bytes."""
        return tuple(file for file in files if not self._store.matches(file))

    def bring(self, files: tuple[RemoteFile, ...], missing: tuple[RemoteFile, ...]) -> tuple[RemoteFile, ...]:
        """Get and publish what is missing; returns the files as they then are at home.

        What changed while it was copied is listed anew and tried once more; what was deleted meanwhile is let go.
        """
        kept = {file.path: file for file in files}
        if not missing:
            return files
        courier = Courier(self._transport, self._inventory, self._root, self._store)
        unstable = self._transfer(courier, kept, missing)
        if unstable:
            again = self.hashed(file for file in self.look().files if file.path in unstable)
            for path in unstable:
                del kept[path]
            kept |= {file.path: file for file in again}
            unstable = self._transfer(courier, kept, self.missing(again))
        if unstable:
            raise LaunchError(
                f"{self._host} keeps changing {', '.join(sorted(unstable)[:5])}",
                why="what arrived was twice not what the host's own sha256 says: something writes it all the time",
                remedy="wait until it is finished, then run the same command again; the rest is already here",
                code=Exit.NOT_VERIFIED,
            )
        return tuple(kept.values())

    def _transfer(self, courier: Courier, kept: Mapping[str, RemoteFile], missing: Sequence[RemoteFile]) -> set[str]:
        """Publish every missing file, each hash moved at most once; returns the paths that did not match."""
        needing = {file.path for file in missing}
        here = {file.sha256: file.path for file in kept.values() if file.path not in needing}
        by_hash: dict[str, list[str]] = {}
        for file in missing:
            by_hash.setdefault(file.sha256, []).append(file.path)
        sources = [file for file in {file.sha256: file for file in missing}.values() if file.sha256 not in here]
        unstable: set[str] = set()
        total_bytes = sum(file.length_bytes - self._store.part_bytes(file.sha256) for file in sources)
        with self._voice.moving(f"{self._host} -> {self._store.folder}", total_bytes) as moved:
            try:
                for file, whole in courier.bring(sources, moved):
                    first, *others = by_hash.pop(file.sha256)
                    if not whole:
                        unstable |= {first, *others}
                        continue
                    self._store.place(self._store.part(file.sha256), first, move=True)
                    for other in others:
                        self._store.place(self._store.folder / first, other, move=False)
            except LaunchError as error:
                raise self._broken(error) from error
        for digest, paths in by_hash.items():
            for path in paths:
                self._store.place(self._store.folder / here[digest], path, move=False)
        return unstable

    def _broken(self, error: LaunchError) -> LaunchError:
        if error.code != Exit.UNREACHABLE:
            return error
        return LaunchError(
            f"the copy from {self._host} is not complete",
            why=f"{error.what}: {error.why}",
            remedy="run the same command again: it goes on where it stopped",
            code=Exit.INCOMPLETE,
        )

    def finish(self, files: Sequence[RemoteFile], now_utc: str) -> None:
        """Say in files that everything is here."""
        manifest = {"host": self._host, "root": self._root, "taken_at": now_utc, "files": _records(files)}
        for name in self._store.finish(manifest, {file.path: file.sha256 for file in files}):
            self._voice.say(f"{name} was changed on this machine since it came; it is no longer in SHA256SUMS")


def _not_onto_itself(transport: Transport, root: str, folder: Path) -> None:
    if transport.host.ssh is not None:
        return
    here, there = folder.resolve(), Path(root).resolve()
    if here == there or any(here.is_relative_to(there / top) for top in ("out", "runs")):
        raise LaunchError(
            f"{folder} cannot be synced onto itself",
            why=f"it is, or lies in, what {transport.host.name} has at {root}",
            remedy="give another folder with --to",
            code=Exit.USAGE,
        )


def _records(files: Iterable[RemoteFile]) -> list[dict[str, Any]]:
    return [{"path": file.path, "sha256": file.sha256, "bytes": file.length_bytes} for file in files]
