"""What finished syncs hashed, so that a file which nobody touched since is not read again, there or here."""

from __future__ import annotations

import contextlib
import json
import os
import time
from collections.abc import Iterable
from pathlib import Path

from launch.inventory import Host
from launch.sync.listing import RemoteFile
from minimind.durable import sha256_file
from minimind.rundir import publish

NAME = ".sync/seen.json"
SETTLED_S = 10.0
"""How long before it was hashed a host's file must have been changed last.

Two changes may fall into one tick of a disk's clock, and a file server's clock may differ a little from the host's."""
TICK_S = 2.0
"""The same at home: the coarsest clock of a disk (FAT)."""


def place(host: Host, root: str) -> str:
    """What a host's files are remembered under."""
    return f"{host.name} {host.ssh or 'here'} {root}"


class Memory:
    """The files of one host and those at home, as (stamp, sha256) by path.

    A stamp that is equal means the same bytes: of a host's file it is length, inode, mtime and ctime. With ``fresh``
    nothing is taken from an earlier sync; what this one hashes is kept all the same.
    """

    def __init__(self, folder: Path, place: str, *, fresh: bool = False) -> None:
        self._path, self._place = folder / NAME, place
        self._far: dict[str, tuple[str, str]] = {}
        self._home: dict[str, tuple[str, str]] = {}
        self._others: dict[str, object] = {}
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError, AttributeError):
            told = json.loads(self._path.read_bytes())
            others = dict(told["hosts"])
            far, home = _entries(others.pop(place, {})), _entries(told["home"])
            self._others = others
            if not fresh:
                self._far, self._home = far, home

    def far(self, file: RemoteFile) -> str | None:
        """The sha256 of a host's file, when it is what was hashed before."""
        stamp, digest = self._far.get(file.path, ("", ""))
        return digest if stamp and stamp == file.stamp else None

    def saw(self, files: Iterable[RemoteFile], *, by_s: float | None) -> None:
        """Keep what was hashed of a host's files after ``by_s`` (its clock), but not of those changed just before."""
        for file in files:
            changed_s = file.changed_s
            if by_s is not None and changed_s is not None and changed_s + SETTLED_S <= by_s and "-" not in file.stamp:
                self._far[file.path] = (file.stamp, file.sha256)
            elif self.far(file) is None:
                self._far.pop(file.path, None)

    def home(self, path: Path, name: str) -> str:
        """The sha256 of a file at home, hashed now unless nobody touched it since."""
        before, now_s = path.stat(), time.time()
        stamp, digest = self._home.get(name, ("", ""))
        if stamp == _stamp(before):
            return digest
        digest = sha256_file(path)
        self._home.pop(name, None)
        if _stamp(path.stat()) == _stamp(before) and max(before.st_mtime, before.st_ctime) + TICK_S <= now_s:
            self._home[name] = (_stamp(before), digest)
        return digest

    def placed(self, path: Path, name: str, sha256: str, part: os.stat_result) -> None:
        """Keep that a verified part with this ``stat`` got its name just now.

        It counts only with an mtime of long ago: then whoever writes into it, however soon, leaves another.
        """
        self._home.pop(name, None)
        now = path.lstat()
        same = (now.st_ino, now.st_size, now.st_mtime_ns) == (part.st_ino, part.st_size, part.st_mtime_ns)
        if same and now.st_mtime + TICK_S <= time.time():
            self._home[name] = (_stamp(now), sha256)

    def save(self, *, only: Iterable[str] | None = None) -> None:
        """Write it down; ``only`` are the names that the host still has. Losing it costs time and nothing else."""
        if only is not None:
            names = set(only)
            self._far = {path: entry for path, entry in self._far.items() if path in names}
        told = {"hosts": {**self._others, self._place: self._far}, "home": self._home}
        with contextlib.suppress(OSError):
            publish(self._path, json.dumps(told).encode())


def _entries(told: object) -> dict[str, tuple[str, str]]:
    if not isinstance(told, dict):
        raise TypeError(told)
    return {str(path): (str(stamp), str(digest)) for path, (stamp, digest) in told.items()}


def _stamp(stat: os.stat_result) -> str:
    return f"{stat.st_size} {stat.st_dev}.{stat.st_ino} {stat.st_mtime_ns} {stat.st_ctime_ns}"
