"""Files that are whole or absent: atomic publication, checksums, JSON. Standard library only."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import json
import os
import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

SUMS = "SHA256SUMS"
BLOCK_BYTES = 1 << 20


def to_json(value: object) -> bytes:
    """Readable, stable JSON with a final newline."""
    return (json.dumps(value, ensure_ascii=False, indent=2, default=str) + "\n").encode()


def fsync_dir(folder: Path) -> None:
    """Make a rename in this folder survive a power cut."""
    fd = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


@contextlib.contextmanager
def publishing(path: Path, *, mode: int = 0o600) -> Iterator[BinaryIO]:
    """A file to write whose name appears only when the block ends well: temporary, fsync, replace, fsync the folder."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.{secrets.token_hex(4)}.tmp")
    try:
        with open(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
        fsync_dir(path.parent)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            temporary.unlink()
        raise


def publish(path: Path, data: bytes, *, mode: int = 0o600) -> None:
    """Give ``path`` these bytes all at once (:func:`publishing`)."""
    with publishing(path, mode=mode) as file:
        file.write(data)


def link_over(source: Path, target: Path) -> None:
    """Let ``target`` name the file ``source`` in one atomic replace: a hard link, or a copy where the disk has none."""
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(f".{target.name}.{os.getpid()}.{secrets.token_hex(4)}.tmp")
    try:
        os.link(source, temporary)
    except OSError:
        publish(target, source.read_bytes())
        return
    os.replace(temporary, target)
    with contextlib.suppress(FileNotFoundError):  # replacing a link to the same file leaves the temporary behind
        temporary.unlink()
    fsync_dir(target.parent)


def sha256_file(path: Path, *, length_bytes: int | None = None) -> str:
    """The sha256 in hex of a file, or of its first so many bytes, read in blocks."""
    with open(path, "rb") as file:
        if length_bytes is None:
            return hashlib.file_digest(file, "sha256").hexdigest()
        total = hashlib.sha256()
        while block := file.read(min(BLOCK_BYTES, length_bytes)):
            total.update(block)
            length_bytes -= len(block)
    return total.hexdigest()


def write_sums(folder: Path) -> None:
    """Publish ``SHA256SUMS`` over every file below the folder, in the format of ``sha256sum``."""
    files = sorted(p for p in folder.rglob("*") if p.is_file() and p.name != SUMS)
    lines = (f"{sha256_file(p)}  {p.relative_to(folder).as_posix()}\n" for p in files)
    publish(folder / SUMS, "".join(lines).encode())


def verified_files(folder: Path) -> list[dict[str, Any]] | None:
    """Hash what SHA256SUMS lists: ``[{path, sha256, bytes}]``, or None when it is missing or anything differs."""
    try:
        lines = (folder / SUMS).read_text().splitlines()
        found = []
        for line in lines:
            digest, _, name = line.partition("  ")
            if sha256_file(folder / name) != digest:
                return None
            found.append({"path": name, "sha256": digest, "bytes": (folder / name).stat().st_size})
        return found
    except (OSError, ValueError):
        return None


def verified_weights(export: Path) -> list[dict[str, Any]]:
    """The verified files of an export; empty when anything differs or no file among them is weights or a tokenizer."""
    files = verified_files(export) or []
    return files if any(str(file["path"]).endswith((".pth", "tokenizer.json")) for file in files) else []


def tree_hash(folder: Path) -> str:
    """One sha256 over the names and contents of every ``.py`` file below a folder: which code is this."""
    total = hashlib.sha256()
    for path in sorted(folder.rglob("*.py"), key=lambda p: p.relative_to(folder).as_posix()):
        total.update(f"{path.relative_to(folder).as_posix()}\0{sha256_file(path)}\n".encode())
    return total.hexdigest()


def is_disk_full(error: BaseException | None) -> bool:
    """Whether a full disk or quota is behind an exception; libraries raise others on the way out."""
    return any(isinstance(one, OSError) and one.errno in (errno.ENOSPC, errno.EDQUOT) for one in behind(error))


def behind(error: BaseException | None) -> list[BaseException]:
    """An exception and those it came from, each once: a chain may lead back to where it began."""
    found: list[BaseException] = []
    ahead = [error]
    while ahead:
        one = ahead.pop()
        if one is not None and all(one is not other for other in found):
            found.append(one)
            ahead += [one.__context__, one.__cause__]
    return found


def is_gpu_memory_full(error: BaseException | None) -> bool:
    """Whether a GPU had no memory left, by what torch says of its own allocations and of those inside the libraries."""
    words = ("CUDA error: out of memory", "CUBLAS_STATUS_ALLOC_FAILED", "CUDNN_STATUS_ALLOC_FAILED")
    return any(
        type(one).__name__ == "OutOfMemoryError"
        or (isinstance(one, RuntimeError) and any(word in str(one) for word in words))
        for one in behind(error)
    )


def is_main_memory_full(error: BaseException | None) -> bool:
    """Whether the system gave no more main memory."""
    return any(
        isinstance(one, MemoryError) or (isinstance(one, RuntimeError) and "DefaultCPUAllocator" in str(one))
        for one in behind(error)
    )


class AlreadyHeld(Exception):
    """Another live process holds the lock; ``owner`` is what it said about itself."""

    def __init__(self, owner: dict[str, Any]) -> None:
        super().__init__(str(owner))
        self.owner = owner


def hold(lock: Path, owner: dict[str, Any]) -> int:
    """Hold ``lock`` until this process (and whoever inherits the descriptor) dies; the kernel lets go then.

    Returns:
        the open descriptor that carries the lock.

    Raises:
        AlreadyHeld: with the holder's ``owner.json``.
    """
    lock.mkdir(mode=0o700, parents=True, exist_ok=True)
    fd = os.open(lock / "held", os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(fd)
        try:
            raise AlreadyHeld(json.loads((lock / "owner.json").read_bytes())) from None
        except (OSError, ValueError):
            raise AlreadyHeld({}) from None
    publish(lock / "owner.json", to_json(owner))
    return fd
