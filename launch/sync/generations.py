"""What earlier syncs verified, and what of it is still here: versions, restoring one, letting old ones go."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from launch.errors import Exit, LaunchError
from launch.sync.listing import WEIGHTS_SUFFIXES
from launch.sync.store import GENERATIONS, PREVIOUS, Store, copy_verified
from minimind.durable import sha256_file
from minimind.rundir import publish, to_json


@dataclass(frozen=True, kw_only=True)
class Kept:
    """One file as a generation had it."""

    path: str
    sha256: str
    length_bytes: int


@dataclass(frozen=True, kw_only=True)
class Generation:
    """What one sync-out verified; ``version`` is its time, UTC."""

    version: str
    host: str
    run_id: str | None
    files: tuple[Kept, ...]

    def to_dict(self) -> dict[str, Any]:
        """For --json."""
        weights = [file.path for file in self.files if file.path.endswith(WEIGHTS_SUFFIXES)]
        return {
            "version": self.version,
            "host": self.host,
            "run_id": self.run_id,
            "files": len(self.files),
            "bytes": sum(file.length_bytes for file in self.files),
            "weights": weights,
        }


def record(store: Store, *, host: str, run_id: str | None, files: Sequence[Mapping[str, Any]]) -> None:
    """Write down what a sync verified, unless the newest generation of that host and run says the same already."""
    latest = next((g for g in reversed(read(store.folder)) if (g.host, g.run_id) == (host, run_id)), None)
    now = {(file["path"], file["sha256"]) for file in files}
    if latest and {(file.path, file.sha256) for file in latest.files} == now:
        return
    folder = store.folder / GENERATIONS
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    told = {"version": store.stamp, "host": host, "run_id": run_id, "files": list(files)}
    publish(folder / f"{store.stamp}.json", to_json(told))


def read(folder: Path) -> list[Generation]:
    """Every generation, oldest first; a file that is none is passed over."""
    found = []
    for path in sorted((folder / GENERATIONS).glob("*.json"), key=lambda path: path.stem):
        try:
            told = json.loads(path.read_bytes())
            files = tuple(
                Kept(path=_plain(item["path"]), sha256=str(item["sha256"]), length_bytes=int(item["bytes"]))
                for item in told["files"]
            )
            found.append(Generation(version=path.stem, host=str(told["host"]), run_id=told.get("run_id"), files=files))
        except (OSError, ValueError, KeyError, TypeError):
            continue
    return found


def find(folder: Path, version: str) -> Generation:
    """The generation of that version.

    Raises:
        LaunchError: INVALID, with the versions there are.
    """
    known = read(folder)
    for generation in known:
        if generation.version == version:
            return generation
    raise LaunchError(
        f"there is no version {version!r} in {folder}",
        why="there are " + (", ".join(g.version for g in known[-8:]) or "none: nothing was synced into that folder"),
        remedy="launch versions",
        code=Exit.INVALID,
    )


def holder(folder: Path, file: Kept) -> Path | None:
    """Who still has exactly those bytes, hashed now; they may be the beginning of a longer file."""
    return next(
        (
            path
            for path in _candidates(folder, file)
            if sha256_file(path, length_bytes=file.length_bytes) == file.sha256
        ),
        None,
    )


def restore(folder: Path, generation: Generation, paths: Sequence[str], to: Path) -> list[Kept]:
    """Copy a generation, or those of its files that lie at or below ``paths``, into a folder; each copy is verified.

    Raises:
        LaunchError: INVALID for a path that it does not have, NOT_VERIFIED when bytes are gone, REFUSED when ``to``
            has something else under one of the names. Nothing is written before all of that is known.
    """
    chosen = [file for file in generation.files if not paths or any(_at_or_below(file.path, top) for top in paths)]
    unknown = [top for top in paths if not any(_at_or_below(file.path, top) for file in chosen)]
    if unknown:
        raise LaunchError(
            f"version {generation.version} has no {', '.join(unknown)}",
            why=f"it has {len(generation.files)} files of {generation.host}",
            remedy=f"launch versions {generation.version}",
            code=Exit.INVALID,
        )
    sources = {file: holder(folder, file) for file in chosen}
    if gone := [file.path for file, source in sources.items() if source is None]:
        raise LaunchError(
            f"{len(gone)} of {len(chosen)} files of version {generation.version} are no longer here: {_few(gone)}",
            why="no file under those names, current or kept, has the sha256 that was verified then",
            remedy="name the files that you need after the version, or take another version: launch versions",
            code=Exit.NOT_VERIFIED,
        )
    if taken := [f.path for f in chosen if os.path.lexists(to / f.path) and sha256_file(to / f.path) != f.sha256]:
        raise LaunchError(
            f"{to} has other files of the same names: {_few(taken)}",
            why="restoring never replaces anything",
            remedy="give another folder with --to",
            code=Exit.REFUSED,
        )
    for file, source in sources.items():
        if source is not None and not os.path.lexists(to / file.path):
            target = to / file.path
            target.parent.mkdir(parents=True, exist_ok=True)
            copy_verified(source, target, file.sha256, length_bytes=file.length_bytes)
    return chosen


def let_go(store: Store, keep: int) -> tuple[list[str], int]:
    """Drop all but the newest ``keep`` generations, and of each host and run the newest one that verifies.

    Two hosts have one folder at home: a host's last copy may lie in an old generation. Returns the versions dropped
    and the bytes that only they needed. Call it under the store's lock.
    """
    known = read(store.folder)
    newest = {generation.version for generation in (known[-keep:] if keep else [])}
    safe: set[tuple[str, str | None]] = set()
    for generation in reversed(known):
        of = generation.host, generation.run_id
        if of not in safe and _verifies(store.folder, generation):
            safe.add(of)
            newest.add(generation.version)
    staying = [generation for generation in known if generation.version in newest]
    dropped = [generation for generation in known if generation.version not in newest]
    needed: dict[str, list[Kept]] = {}
    for file in {file for generation in staying for file in generation.files}:
        needed.setdefault(file.path, []).append(file)
    for generation in dropped:
        (store.folder / GENERATIONS / f"{generation.version}.json").unlink()
    freed_bytes = 0
    for file in {file for generation in dropped for file in generation.files}:
        for path in _candidates(store.folder, file):
            length_bytes = path.stat().st_size
            if path == store.folder / file.path or sha256_file(path) != file.sha256:
                continue  # current, or something that this generation knows the beginning of at most
            if not any(
                sha256_file(path, length_bytes=other.length_bytes) == other.sha256
                for other in needed.get(file.path, ())
            ):
                freed_bytes += length_bytes
                path.unlink()
    for folder, _, _ in os.walk(store.folder / PREVIOUS, topdown=False):
        with contextlib.suppress(OSError):  # not empty
            Path(folder).rmdir()
    return [generation.version for generation in dropped], freed_bytes


def _verifies(folder: Path, generation: Generation) -> bool:
    return all(holder(folder, file) for file in generation.files)


def _candidates(folder: Path, file: Kept) -> Iterator[Path]:
    kept = sorted((folder / PREVIOUS).glob("*"), reverse=True)
    for path in (folder / file.path, *(stamp / file.path for stamp in kept)):
        if path.is_file() and not path.is_symlink() and path.stat().st_size >= file.length_bytes:
            yield path


def _at_or_below(path: str, top: str) -> bool:
    return path == top.rstrip("/") or path.startswith(f"{top.rstrip('/')}/")


def _plain(path: object) -> str:
    if not isinstance(path, str) or path.startswith("/") or any(part in ("", ".", "..") for part in path.split("/")):
        raise ValueError(path)
    return path


def _few(names: Sequence[str]) -> str:
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
