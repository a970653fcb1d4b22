"""What lies in a host's out/ and runs/: listed and hashed there, and believed here only as far as it is harmless."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath

from launch.errors import Exit, LaunchError, printable
from launch.transport import Transport, last_lines

WEIGHTS_SUFFIXES = (".pth", ".safetensors")
_NO_ROOT = 66

LIST = r"""
cd "$1" 2>/dev/null || exit 66
shift
for top in "$@"; do
  if [ -e "$top" ]; then set -- "$@" "$top"; fi
  shift
done
[ $# -gt 0 ] || { printf 'end\0'; exit 0; }
if find . -maxdepth 0 -printf '' 2>/dev/null; then
  find -H "$@" ! -type d -printf '%y %s %D.%i %p\0'
else
  find -H "$@" ! -type d -exec sh -c '
    for path in "$@"; do
      if [ -f "$path" ] && [ ! -L "$path" ]; then
        printf "f %d - %s\000" "$(wc -c <"$path")" "$path"
      else
        printf "o 0 - %s\000" "$path"
      fi
    done' sh {} +
fi
code=$?
printf 'end\0'
exit $code
"""
"""Prints, NUL-terminated: kind (f: regular), bytes, an identity shared by hard links (or -), path; at last ``end``."""

HASH = r"""
cd "$1" || exit 66
exec xargs -0 -n 200 sh -c '
  hash() { if command -v sha256sum >/dev/null 2>&1; then sha256sum; else shasum -a 256; fi; }
  while [ $# -gt 0 ]; do
    sum=
    if [ -f "$2" ] && [ -r "$2" ]; then
      if [ "$1" = all ]; then sum=$(hash <"$2"); else sum=$(head -c "$1" <"$2" | hash); fi
    fi
    sum=${sum%% *}
    echo "${sum:--}"
    shift 2
  done' sh
"""
"""Reads NUL-terminated pairs (``all`` or a number of bytes, path); prints a line each: sha256 of that much, or -."""


@dataclass(frozen=True, kw_only=True)
class RemoteFile:
    """A regular file at ``path`` below the host's root. ``identity`` is equal for hard links to one file."""

    path: str
    length_bytes: int
    identity: str
    sha256: str = ""

    @property
    def grows(self) -> bool:
        """Whether it is only ever appended to, so that its first ``length_bytes`` are a true earlier state."""
        name = PurePosixPath(self.path).name
        return name == "metrics.jsonl" or re.fullmatch(r"log.*\.txt", name) is not None

    @property
    def weights(self) -> bool:
        """Whether these are weights for use, in out/ or in a run's export/ (checkpoints are not)."""
        parts = PurePosixPath(self.path).parts
        return self.path.endswith(WEIGHTS_SUFFIXES) and (parts[0] == "out" or parts[2:3] == ("export",))


@dataclass(frozen=True, kw_only=True)
class Odd:
    """Something that is left on the host, and why; ``name`` is safe to print."""

    name: str
    why: str


@dataclass(frozen=True, kw_only=True)
class Listing:
    """What there is to bring home, and what is left alone."""

    files: tuple[RemoteFile, ...]
    odd: tuple[Odd, ...]


def list_files(transport: Transport, root: str, tops: Sequence[str]) -> Listing:
    """Every file below ``tops`` (relative to the absolute ``root``), not yet hashed.

    Raises:
        LaunchError: NOT_VERIFIED when the root does not exist.
    """
    told = transport.read(["sh", "-c", LIST, "sh", root, *tops], check=False)
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


def parse(listed: bytes, tops: Sequence[str]) -> Listing:
    """Read the output of LIST; nothing in it is trusted.

    Raises:
        LaunchError: INCOMPLETE when it does not reach its end.
    """
    files: dict[str, RemoteFile] = {}
    odd = []
    *entries, end, rest = [b"", *listed.split(b"\0")]
    if (end, rest) != (b"end", b""):
        raise LaunchError(
            "the host's list of files is cut off",
            why="it ended before its end mark",
            remedy="run the same command again",
            code=Exit.INCOMPLETE,
        )
    for entry in entries[1:]:
        kind, _, rest = entry.partition(b" ")
        length, _, rest = rest.partition(b" ")
        identity, _, raw = rest.partition(b" ")
        name = raw.decode("utf-8", "surrogateescape")
        if kind != b"f":
            odd.append(Odd(name=_shown(name), why="a link" if kind == b"l" else "no regular file"))
        elif trouble := _unfit(name, tops):
            odd.append(Odd(name=_shown(name), why=trouble))
        elif not length.isdigit() or len(length) > 18 or name in files:
            odd.append(Odd(name=_shown(name), why="listed in a way that makes no sense"))
        else:
            same = printable(identity.decode("ascii", "replace"))
            files[name] = RemoteFile(
                path=name, length_bytes=int(length), identity=name if same in ("-", "") else f"#{same}"
            )
    return Listing(files=tuple(files.values()), odd=tuple(odd))


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
    stdin = b"".join(f"{much}\0{path}\0".encode() for much, path in pairs)
    lines = transport.read(["sh", "-c", HASH, "sh", folder], stdin=stdin).stdout.decode("ascii", "replace").split()
    if len(lines) != len(pairs):
        raise LaunchError(
            f"{transport.host.name} answered {len(lines)} checksums for {len(pairs)} files",
            why="something on the host prints into the output of commands, or sha256sum is missing",
            remedy=f"see what `ssh {transport.host.ssh} true` prints: it must print nothing",
            code=Exit.HOST_NOT_READY,
        )
    return [line if re.fullmatch("[0-9a-f]{64}", line) else None for line in lines]


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
