"""The folder in which a data file's shards lie: one builder at a time, a remembered hash, old shards removed."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from minimind.durable import publish, sha256_file, to_json

SETTLED_S = 2.0
"""A file changed more recently may change again within one tick of its clock: its hash is not remembered."""


class Unwritable(Exception):
    """A folder in which no shards can be made."""


@contextlib.contextmanager
def locked(home: Path, say: Callable[[str], None]) -> Iterator[None]:
    """Alone in a folder of shards; says who is waited for when that takes more than a moment."""
    try:
        home.mkdir(mode=0o700, parents=True, exist_ok=True)
        lock = os.open(home / "lock", os.O_RDWR | os.O_CREAT, 0o600)
    except OSError as error:
        raise Unwritable from error
    try:
        began, told = time.monotonic(), False
        while True:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                time.sleep(0.05)
            except OSError as error:  # a file system without locks
                raise Unwritable from error
            if not told and time.monotonic() - began > 1:
                told = True
                holder = os.pread(lock, 100, 0).decode(errors="replace").strip() or "another process"
                say(f"{holder} is tokenising into {home}; waiting for it")
        with contextlib.suppress(OSError):  # who holds it is a courtesy; a full disk must not matter here
            os.ftruncate(lock, 0)
            os.pwrite(lock, f"process {os.getpid()} on {os.uname().nodename}\n".encode(), 0)
        yield
    finally:
        os.close(lock)


def identity_of(path: Path) -> dict[str, Any]:
    """What a file shows without being read, which changes with every write to it; its ctime cannot be set back."""
    found = path.stat()
    return {
        "path": str(path.resolve()),
        "bytes": found.st_size,
        "mtime_ns": found.st_mtime_ns,
        "ctime_ns": found.st_ctime_ns,
        "inode": found.st_ino,
        "device": found.st_dev,
    }


def content_hash(path: Path, *homes: Path, identity: Mapping[str, Any], remember: bool = True) -> str:
    """The file's sha256, remembered in one of ``homes`` (noted in the last) while nothing about the file differs."""
    name = hashlib.sha256(str(identity["path"]).encode(errors="surrogateescape")).hexdigest()[:12]
    notes = [home / f"content-{name}.json" for home in homes]
    for note in notes:
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
            noted = json.loads(note.read_bytes())
            if noted["identity"] == identity and len(noted["sha256"]) == 64:
                return str(noted["sha256"])
    began_ns = time.time_ns()
    found = sha256_file(path)
    settled = began_ns - max(identity["mtime_ns"], identity["ctime_ns"]) > SETTLED_S * 1e9
    if remember and settled and identity_of(path) == identity:
        with contextlib.suppress(OSError):
            homes[-1].mkdir(mode=0o700, parents=True, exist_ok=True)
            publish(notes[-1], to_json({"identity": identity, "sha256": found}))
    return found


def prune(home: Path, keep: Callable[[str], bool], say: Callable[[str], None]) -> None:
    """Remove the finished shards that ``keep`` does not want, by their name, and that no process reads."""
    for folder in home.iterdir():
        if keep(folder.name) or not (folder / "meta.json").is_file():
            continue
        with contextlib.suppress(FileNotFoundError):  # those of older versions have none; what is mapped stays readable
            fd = os.open(folder / "in-use", os.O_RDWR)
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                continue
            finally:
                os.close(fd)
        say(f"removing tokens of an earlier content of the data: {folder}")
        shutil.rmtree(folder, ignore_errors=True)
