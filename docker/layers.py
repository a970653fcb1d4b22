"""Layers as the same bytes for the same files: sorted names, one time, no names of users, nothing else in the headers.

Also tells two layers apart file by file.
"""

from __future__ import annotations

import contextlib
import hashlib
import shutil
import tarfile
import tempfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO, Any

MTIME_S = 1_580_601_600
"""2020-02-02, the time of every file in every layer: the commit's would make each commit another torch layer."""
FOLDER_MODE = 0o755
"""Of the folders above what is copied; an engine would make them 0600 where a layer leaves them out."""


@dataclass(frozen=True, kw_only=True)
class Layer:
    """A layer on disk. ``diff_id`` is ``sha256:`` and the digest of its bytes, which is how engines name it."""

    path: Path
    diff_id: str
    bytes: int


class _Hashing:
    """A file to write to that knows the sha256 of what went through."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file, self._hash, self.bytes = file, hashlib.sha256(), 0

    def tell(self) -> int:
        return self.bytes

    def write(self, data: bytes) -> int:
        self._hash.update(data)
        self.bytes += len(data)
        return self._file.write(data)

    def hexdigest(self) -> str:
        return self._hash.hexdigest()


def normalised(member: tarfile.TarInfo, name: str) -> tarfile.TarInfo:
    """A header with nothing in it that the time, the builder or the order of writing decide."""
    clean = tarfile.TarInfo(name)
    clean.type, clean.size, clean.linkname = member.type, member.size if member.isreg() else 0, member.linkname
    clean.mode, clean.uid, clean.gid, clean.mtime = member.mode & 0o7777, member.uid, member.gid, MTIME_S
    if member.isdir():
        clean.mode = member.mode & 0o7777 or FOLDER_MODE
    return clean


def write(path: Path, trees: Iterable[tuple[str, IO[bytes]]]) -> Layer:
    """Write a layer from tar streams.

    Args:
        path: where the layer goes.
        trees: an absolute folder and a tar stream with names relative to it, as ``docker cp SOURCE -`` prints it. Each
            stream is read to its end before the next is asked for.
    """
    with contextlib.ExitStack() as stack:
        found: dict[str, tuple[tarfile.TarFile | None, tarfile.TarInfo]] = {}
        for folder, stream in trees:
            for parent in (PurePosixPath(folder), *PurePosixPath(folder).parents):
                if name := str(parent).strip("/"):
                    header = tarfile.TarInfo(name)
                    header.type, header.mode = tarfile.DIRTYPE, FOLDER_MODE
                    found.setdefault(name, (None, header))
            raw = stack.enter_context(tempfile.TemporaryFile(dir=path.parent))
            shutil.copyfileobj(stream, raw, 1 << 20)
            raw.seek(0)
            source = stack.enter_context(tarfile.open(fileobj=raw, mode="r:"))
            for member in source:
                if member.islnk():
                    member.linkname = str(PurePosixPath(folder, member.linkname)).strip("/")
                found[str(PurePosixPath(folder, member.name)).strip("/")] = (source, member)
        file = stack.enter_context(open(path, "wb"))
        hashing: Any = _Hashing(file)
        with tarfile.open(fileobj=hashing, mode="w", format=tarfile.PAX_FORMAT) as target:
            for name in sorted(found, key=lambda name: name.split("/")):
                origin, member = found[name]
                data = origin.extractfile(member) if origin and member.isreg() else None
                target.addfile(normalised(member, name), data)
    return Layer(path=path, diff_id=f"sha256:{hashing.hexdigest()}", bytes=hashing.bytes)


def contents(layer: IO[bytes]) -> dict[str, tuple[object, ...]]:
    """Every name in a layer with all that can differ: kind, mode, owner, time, link, length, sha256."""
    found: dict[str, tuple[object, ...]] = {}
    with tarfile.open(fileobj=layer, mode="r|") as tar:
        for m in tar:
            data = tar.extractfile(m) if m.isreg() else None
            digest = hashlib.file_digest(data, "sha256").hexdigest() if data else ""  # type: ignore[arg-type]
            found[m.name.strip("/")] = (m.type, m.mode, m.uid, m.gid, m.mtime, m.linkname, m.size, digest)
    return found


FIELDS = ("kind", "mode", "uid", "gid", "time", "link", "length", "content")


def differences(one: Mapping[str, tuple[object, ...]], two: Mapping[str, tuple[object, ...]]) -> list[str]:
    """One line a name that the two layers do not agree on, saying in what."""
    lines = []
    for name in sorted({*one, *two}):
        if name not in one or name not in two:
            lines.append(f"{name}: only in the {'first' if name in one else 'second'}")
        elif one[name] != two[name]:
            fields = (f for f, a, b in zip(FIELDS, one[name], two[name], strict=True) if a != b)
            lines.append(f"{name}: {', '.join(fields)}")
    return lines
