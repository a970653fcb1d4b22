"""What lies in a host's out/ and runs/: listed and hashed there, and believed here only as far as it is harmless."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath

from launch.errors import Exit, LaunchError, printable
from launch.sync.scripts import HASH, LIST
from launch.transport import Transport, last_lines

WEIGHTS_SUFFIXES = (".pth", ".safetensors")
ARGV_BYTES = 32 << 10
_NO_ROOT = 66


@dataclass(frozen=True, kw_only=True)
class RemoteFile:
    """A regular file at ``path`` below the host's root.

    ``identity`` is equal for hard links to one file. ``stamp`` is what the host knows of it (length, inode, mtime,
    ctime): another stamp means that the bytes may be others.
    """

    path: str
    length_bytes: int
    identity: str
    stamp: str = ""
    sha256: str = ""

    @property
    def changed_s(self) -> float | None:
        """When the host last changed it (its ctime, by the host's clock); None where that cannot be told."""
        return _seconds(self.stamp.split(" ")[-1])

    @property
    def modified_s(self) -> float | None:
        """When its bytes were last written, by the host's clock; None where that cannot be told."""
        return _seconds(self.stamp.split(" ")[-2]) if self.stamp.count(" ") == 3 else None

    @property
    def grows(self) -> bool:
        """Whether it is only ever appended to, so that its first ``length_bytes`` are a true earlier state."""
        name = PurePosixPath(self.path).name
        return name == "metrics.jsonl" or re.fullmatch(r"log.*\.txt", name) is not None

    @property
    def weights(self) -> bool:
        """Whether these are weights for use, in out/ or in a run's export/ (checkpoints are not)."""
        parts = PurePosixPath(self.path).parts
        for_use = parts[0] == "out" or parts[2:3] == ("export",)
        return self.path.endswith(WEIGHTS_SUFFIXES) and for_use and self.length_bytes > 0

    @property
    def checkpoint(self) -> str | None:
        """The folder of the checkpoint that it belongs to."""
        found = re.match(r"runs/[^/]+/ckpt/step-\d{8}(?=/)", self.path)
        return found[0] if found else None

    def holds_still(self, now: RemoteFile | None) -> bool:
        """Whether what was hashed is what is there ``now``."""
        if now is None:
            return False
        return now.length_bytes >= self.length_bytes if self.grows else now.stamp == self.stamp


@dataclass(frozen=True, kw_only=True)
class Odd:
    """Something that is left on the host, and why; ``name`` is safe to print."""

    name: str
    why: str


@dataclass(frozen=True, kw_only=True)
class Listing:
    """What there is to bring home, and what is left alone; ``now_s`` is the host's clock when it began to look."""

    files: tuple[RemoteFile, ...]
    odd: tuple[Odd, ...]
    now_s: float | None = None


def list_files(transport: Transport, root: str, tops: Sequence[str]) -> Listing:
    """Every file below ``tops`` (relative to the absolute ``root``), not yet hashed. A top may be a link to a folder.

    Raises:
        LaunchError: NOT_VERIFIED when the root does not exist.
    """
    told = transport.read(["sh", "-c", LIST, "sh", root, "-H", *tops], check=False)
    if told.code == _NO_ROOT:
        raise LaunchError(
            f"{transport.host.name} has nothing to bring home",
            why=f"there is no folder {root}",
            remedy=f"correct root of {transport.host.name} in launch.toml, or start a run there",
            code=Exit.NOT_VERIFIED,
        )
    listing = parse(told.stdout, tops)
    if told.code:
        unread = Odd(name=root, why=f"not all of it could be listed: {last_lines(told.stderr, 1)}")
        return dataclasses.replace(listing, odd=(*listing.odd, unread))
    return listing


def list_again(transport: Transport, root: str, paths: Iterable[str]) -> Mapping[str, RemoteFile]:
    """Those of the paths that are regular files now, with their stamps of now."""
    found: dict[str, RemoteFile] = {}
    for some in _pieces(paths):
        told = transport.read(["sh", "-c", LIST, "sh", root, "-P", *some], check=False)
        found |= {file.path: file for file in parse(told.stdout, [path.partition("/")[0] for path in some]).files}
    return found


def _pieces(paths: Iterable[str]) -> Iterator[list[str]]:
    some: list[str] = []
    length_bytes = 0
    for path in paths:
        if some and length_bytes + len(path.encode()) > ARGV_BYTES:
            yield some
            some, length_bytes = [], 0
        some.append(path)
        length_bytes += len(path.encode()) + 4
    if some:
        yield some


def parse(listed: bytes, tops: Sequence[str]) -> Listing:
    """Read the output of LIST; nothing in it is trusted.

    Raises:
        LaunchError: INCOMPLETE when it does not reach its end, HOST_NOT_READY when the host cannot tell lengths.
    """
    files: dict[str, RemoteFile] = {}
    odd = []
    now_s = None
    *entries, end, rest = [b"", *listed.split(b"\0")]
    if (end, rest) != (b"end", b""):
        raise LaunchError(
            "the host's list of files is cut off",
            why="it does not reach its end, so files may be missing from it",
            remedy="run the same command again",
            code=Exit.INCOMPLETE,
        )
    tops = tuple(dict.fromkeys(tops))
    for entry in entries[1:]:
        kind, length, inode, mtime, ctime, path = (*entry.split(b" ", 5), b"", b"", b"", b"", b"")[:6]
        name = path.decode("utf-8", "surrogateescape")
        if kind == b"time":
            now_s = _seconds(length.decode("ascii", "replace"))
        elif kind != b"f":
            odd.append(Odd(name=_shown(name), why="a link" if kind == b"l" else "no regular file"))
        elif trouble := _unfit(name, tops):
            odd.append(Odd(name=_shown(name), why=trouble))
        elif length == b"?":
            raise _no_lengths()
        elif not re.fullmatch(rb"[0-9]{1,18}", length) or name in files:
            odd.append(Odd(name=_shown(name), why="listed in a way that makes no sense"))
        else:
            stamp = printable(b" ".join((length, inode, mtime, ctime)).decode("ascii", "replace"))
            known = inode not in (b"-", b"")
            identity = f"#{printable(inode.decode('ascii', 'replace'))}" if known else name
            files[name] = RemoteFile(path=name, length_bytes=int(length), identity=identity, stamp=stamp)
    return Listing(files=tuple(files.values()), odd=tuple(odd), now_s=now_s)


def _seconds(told: str) -> float | None:
    """A time of this century; hosts say all sorts of things."""
    return float(told) if re.fullmatch(r"[0-9]{1,10}(\.[0-9]{1,12})?", told) else None


def _no_lengths() -> LaunchError:
    return LaunchError(
        "the host cannot tell how long a file is",
        why="it has none of find -printf, stat, wc and GNU tar",
        remedy="install one of them there (apt install findutils)",
        code=Exit.HOST_NOT_READY,
    )


def hashed(transport: Transport, root: str, files: Iterable[RemoteFile]) -> tuple[RemoteFile, ...]:
    """The files with their sha256 as of now, less those that went away meanwhile. Hard links are hashed once."""
    files = tuple(files)
    one_each = {(file.identity, file.length_bytes, file.grows): file for file in files}
    pairs = [(str(file.length_bytes) if file.grows else "all", file.path) for file in one_each.values()]
    sums = dict(zip(one_each, hashes(transport, root, pairs), strict=True))
    found = ((file, sums[file.identity, file.length_bytes, file.grows]) for file in files)
    return tuple(dataclasses.replace(file, sha256=digest) for file, digest in found if digest)


def hashes(transport: Transport, folder: str, pairs: Sequence[tuple[str, str]]) -> list[str | None]:
    """sha256 of (how much, path) each, None for what cannot be read; paths are absolute or below ``folder``."""
    if not pairs:
        return []
    order = sorted(range(len(pairs)), key=lambda number: pairs[number][0] != "all")  # whole files share a process
    stdin = b"".join("{}\n{}\n".format(*pairs[number]).encode() for number in order)
    lines = transport.read(["sh", "-c", HASH, "sh", folder], stdin=stdin).stdout.decode("ascii", "replace").split()
    if len(lines) != len(pairs):
        raise LaunchError(
            f"{transport.host.name} answered {len(lines)} checksums for {len(pairs)} files",
            why="something on the host prints into the output of commands, or sha256sum is missing",
            remedy=f"see what `ssh {transport.host.ssh} true` prints: it must print nothing",
            code=Exit.HOST_NOT_READY,
        )
    found = {n: line for n, line in zip(order, lines, strict=True) if re.fullmatch("[0-9a-f]{64}", line)}
    return [found.get(number) for number in range(len(pairs))]


def _shown(name: str) -> str:
    return printable(name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")).replace("\n", "\\n")


def _unfit(name: str, tops: Sequence[str]) -> str:
    """Why a name cannot be a name here; empty when it can."""
    parts = name.split("/")
    if printable(name) != name or "\n" in name or "\t" in name:
        return "its name has control characters or is not UTF-8"
    if any(part in ("", ".", "..") or len(part.encode()) > 255 for part in parts):
        return "its name leads elsewhere"
    if not any(name.startswith(f"{top}/") for top in tops):
        return "it lies outside what was asked for"
    if any(part.startswith(".tmp-") or (part.startswith(".") and part.endswith(".tmp")) for part in parts):
        return "temporary: something is still being written"
    return ""
