"""The folder at home: parts that survive a kill, names that appear only when whole, checksums written last."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import re
import secrets
import shutil
import time
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from launch.errors import Exit, LaunchError
from launch.sync.listing import RemoteFile
from launch.sync.memory import Memory
from minimind.durable import SUMS, fsync_dir, sha256_file
from minimind.rundir import publish, to_json

LOCK_WAIT_S = 10.0
MANIFEST = "manifest.json"
STAMP = re.compile(r"\d{8}T\d{6}Z(-\d{3,})?")
PREVIOUS, GENERATIONS = ".previous", ".sync/generations"


class Store:
    """``folder`` with its ``.sync/`` (parts, lock, generations) and ``.previous/`` (what was replaced).

    Without a ``memory`` every file is hashed whenever it matters.
    """

    def __init__(self, folder: Path, *, stamp: str, memory: Memory | None = None) -> None:
        self.folder, self.stamp = folder, stamp
        self.memory = memory or Memory(folder, "", fresh=True)
        self._parts = folder / ".sync"
        self._unsettled: set[Path] = set()
        self.lock_fd: int | None = None

    def part(self, sha256: str) -> Path:
        """Where the bytes with this hash gather."""
        return self._parts / f"{sha256}.part"

    def part_bytes(self, sha256: str) -> int:
        """How many of them an earlier attempt left."""
        with contextlib.suppress(OSError):
            return self.part(sha256).lstat().st_size
        return 0

    def gathered_bytes(self) -> int:
        """What all earlier attempts left."""
        return sum(part.lstat().st_size for part in self._parts.glob("*.part"))

    def free_bytes(self) -> int:
        """Room on the disk that holds, or will hold, the folder."""
        there = next(path for path in (self.folder, *self.folder.parents) if path.is_dir())
        return shutil.disk_usage(there).free

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Keep other syncs out of the folder; the kernel lets go when we, and an rsync of ours, are gone.

        Raises:
            LaunchError: REFUSED when another one is at work.
        """
        self._parts.mkdir(mode=0o700, parents=True, exist_ok=True)
        fd = os.open(self._parts / "lock", os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
        deadline = time.monotonic() + LOCK_WAIT_S  # the rsync of a killed launcher dies within a second or two
        try:
            while True:
                try:
                    fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except BlockingIOError as error:
                    if time.monotonic() > deadline:
                        raise LaunchError(
                            f"another sync-out is writing to {self.folder}",
                            why=f"{self._parts / 'lock'} is held by a living process",
                            remedy="wait for it to end, or give another folder with --to",
                            code=Exit.REFUSED,
                        ) from error
                    time.sleep(0.1)
            self.lock_fd = fd
            self.stamp = _unused(self.folder, self.stamp)
            yield
        finally:
            self.lock_fd = None
            os.close(fd)

    def has_length(self, path: str, length_bytes: int) -> bool:
        """Whether a regular file of that name and length is there."""
        target = self.folder / path
        return target.is_file() and not target.is_symlink() and target.stat().st_size == length_bytes

    def matches(self, file: RemoteFile) -> bool:
        """Whether the file is there with exactly its bytes."""
        return self.has_length(file.path, file.length_bytes) and self.digest(file.path) == file.sha256

    def digest(self, path: str) -> str:
        """The sha256 of a file that is there."""
        return self.memory.home(self.folder / path, path)

    def place(self, source: Path, path: str, sha256: str, *, move: bool, modified_s: float | None = None) -> None:
        """Give a verified file its final name, all at once; a different file of that name is kept in .previous/.

        Without ``move`` it is copied: two names never share a file, so that editing one leaves the other. It shows
        the time ``modified_s`` as that of its last change.
        """
        target = self.folder / path
        if target.is_dir() and not target.is_symlink():
            raise LaunchError(
                f"{target} is a folder here and a file on the host",
                why="a folder is never replaced by a file",
                remedy="move it away, or give another folder with --to",
                code=Exit.REFUSED,
            )
        target.parent.mkdir(parents=True, exist_ok=True)
        self._keep_previous(target, path, source)
        if move:
            part = _dated(source, modified_s)
            try:
                os.replace(source, target)
            except OSError as error:
                if error.errno != errno.EXDEV:
                    raise
                part = copy_verified(source, target, sha256, modified_s=modified_s)
                source.unlink()
        else:
            part = copy_verified(source, target, sha256, modified_s=modified_s)
        self.memory.placed(target, path, sha256, part)
        self._unsettled.add(target.parent)

    def settle(self) -> None:
        """Make the names given since the last call survive a power cut."""
        while self._unsettled:
            fsync_dir(self._unsettled.pop())

    def _keep_previous(self, target: Path, path: str, source: Path) -> None:
        if not os.path.lexists(target) or (target.is_file() and _begins_with(source, target)):
            return
        kept = self.folder / PREVIOUS / self.stamp / path
        kept.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        if os.path.lexists(kept):  # this very sync put the target there
            return
        try:
            os.link(target, kept, follow_symlinks=False)
        except OSError:  # a disk without hard links
            copy(target, kept)
        fsync_dir(kept.parent)

    def finish(self, manifest: Mapping[str, object], sums: Mapping[str, str]) -> list[str]:
        """Write manifest.json, then SHA256SUMS: both together mean that everything is here and whole.

        Files of earlier syncs stay listed while they are what they were; returns those that are not any more.
        """
        merged, changed = dict(sums), []
        for name, digest in read_sums(self.folder / SUMS).items():
            if name in merged or not (self.folder / name).is_file():
                continue
            if self.digest(name) == digest:
                merged[name] = digest
            else:
                changed.append(name)
        self.settle()
        publish(self.folder / MANIFEST, to_json(manifest), mode=0o644)
        publish(self.folder / SUMS, format_sums(merged).encode(), mode=0o644)
        self.drop_parts(part.stem for part in self._parts.glob("*.part"))
        return changed

    def drop_parts(self, digests: Iterable[str]) -> None:
        """Forget what was fetched of contents that nothing has any more."""
        for digest in digests:
            self.part(digest).unlink(missing_ok=True)


def read_sums(path: Path) -> dict[str, str]:
    """Map of name to sha256, read from a SHA256SUMS file; empty when it cannot be read."""
    try:
        return parse_sums(path.read_bytes())
    except OSError:
        return {}


def parse_sums(data: bytes) -> dict[str, str]:
    """Map of name to sha256; lines that are not of the format of SHA256SUMS are left out."""
    try:
        lines = data.decode("utf-8").splitlines()
    except UnicodeDecodeError:
        return {}
    found = (re.fullmatch(r"(\\?)([0-9a-f]{64}) [ *](.+)", line) for line in lines)
    return {(m[3].replace("\\\\", "\\") if m[1] else m[3]): m[2] for m in found if m}


def format_sums(sums: Mapping[str, str]) -> str:
    """The text that ``sha256sum -c`` reads; it marks names with a backslash by one in front of the line."""
    return "".join(
        f"\\{digest}  {name.replace(chr(92), chr(92) * 2)}\n" if "\\" in name else f"{digest}  {name}\n"
        for name, digest in sorted(sums.items())
    )


def copy_verified(
    source: Path, target: Path, sha256: str, *, length_bytes: int | None = None, modified_s: float | None = None
) -> os.stat_result:
    """Give ``target`` the bytes of ``source``, or its first ``length_bytes``, once they have this sha256.

    Returns what the new file looked like just before it got its name.

    Raises:
        LaunchError: NOT_VERIFIED; the target is as it was.
    """
    temporary = target.with_name(f".tmp-{secrets.token_hex(8)}")
    try:
        copy(source, temporary)
        if length_bytes is not None:
            os.truncate(temporary, length_bytes)
        if sha256_file(temporary) != sha256:
            raise LaunchError(
                f"{target} could not be written",
                why=f"{source} was changed while it was being copied, or this disk gives back other bytes",
                remedy="run the same command again; if it happens again, check the disk",
                code=Exit.NOT_VERIFIED,
            )
        dated = _dated(temporary, modified_s)
        os.replace(temporary, target)
        return dated
    finally:
        temporary.unlink(missing_ok=True)


def _dated(path: Path, modified_s: float | None) -> os.stat_result:
    if modified_s is not None:
        with contextlib.suppress(OSError, OverflowError):  # a disk that knows other times only
            os.utime(path, (modified_s, modified_s))
    return path.stat()


def copy(source: Path, target: Path) -> None:
    """Copy a file onto a new name, flushed; where the disk can, the two share blocks until one is written to."""
    with open(source, "rb") as old, open(os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as new:
        left = os.fstat(old.fileno()).st_size
        with contextlib.suppress(OSError, AttributeError):  # an older kernel, another disk, a Mac
            while left and (copied := os.copy_file_range(old.fileno(), new.fileno(), left)):
                left -= copied
        old.seek(new.seek(0, os.SEEK_END))
        shutil.copyfileobj(old, new, 1 << 20)
        new.flush()
        os.fsync(new.fileno())


def _unused(folder: Path, stamp: str) -> str:
    """The stamp, or one after the newest there is when that is not older: two syncs in a second, a clock set back.

    So the names of generations sort by when they were made, whatever this machine's clock says.
    """
    names = [path.name.removesuffix(".json") for top in (PREVIOUS, GENERATIONS) for path in (folder / top).glob("*")]
    newest = max((name for name in names if STAMP.fullmatch(name)), default="")
    if not STAMP.fullmatch(stamp) or stamp > newest:
        return stamp
    base, _, number = newest.partition("-")
    return f"{base}-{int(number or 1) + 1:03}"


def _begins_with(longer: Path, shorter: Path) -> bool:
    """Whether nothing of ``shorter`` would be lost: a log that only grew, or the same file."""
    with open(longer, "rb") as a, open(shorter, "rb") as b:
        while block := b.read(1 << 20):
            if a.read(len(block)) != block:
                return False
    return True
