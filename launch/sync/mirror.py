"""A copy of what is at home on a remote of rclone: sent aside, read back, renamed, SHA256SUMS last."""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from launch.argv import rclone
from launch.errors import Exit, LaunchError
from launch.sync.home import Report, unwritable
from launch.sync.listing import RemoteFile
from launch.sync.remote import NOT_THERE, Remote, not_verified
from launch.sync.store import MANIFEST, Store, format_sums, parse_sums
from launch.sync.trip import records
from launch.voice import Voice
from minimind.durable import SUMS
from minimind.rundir import publish, to_json

INCOMING, PREVIOUS = ".sync/incoming", ".previous"
PREFIX = "rclone:"


@dataclass(frozen=True, kw_only=True)
class Mirrored:
    """What was sent to a remote, or would be."""

    remote: str
    sent: tuple[RemoteFile, ...]

    @property
    def sent_bytes(self) -> int:
        """Their bytes."""
        return sum(file.length_bytes for file in self.sent)

    def to_dict(self) -> dict[str, Any]:
        """For --json."""
        return {"to": self.remote, "sent": [file.path for file in self.sent], "sent_bytes": self.sent_bytes}


def remote_of(to: str | None) -> str | None:
    """The remote that ``rclone:REMOTE:PATH`` names; None for a folder.

    Raises:
        LaunchError: USAGE when it names none.
    """
    if to is None or not to.startswith(PREFIX):
        return None
    name = to.removeprefix(PREFIX)
    if ":" not in name or name.startswith("-"):
        raise LaunchError(
            f"{to} names no remote of rclone",
            why="it has to be rclone:REMOTE:PATH, for instance rclone:s3:bucket/minimind",
            remedy="`rclone listremotes` shows the ones there are",
            code=Exit.USAGE,
        )
    return name


def mirror(
    report: Report, name: str, *, voice: Voice, now_utc: str, dry: bool = False, fresh: bool = False
) -> Mirrored:
    """Send those files of a finished sync-out that the remote lacks; what they replace goes to ``.previous`` there.

    A file gets its name there after its sha256 was told by the remote or, where it cannot tell, found in what was read
    back. ``manifest.json`` and ``SHA256SUMS`` come last. Unless ``fresh``, what the remote shows with the size and time
    that it had after an earlier verified sync is not read back again.

    Raises:
        LaunchError: HOST_NOT_READY without rclone or when the remote refuses, NOT_VERIFIED when other bytes came back,
            INCOMPLETE when the link broke, REFUSED when another sync is at work.
    """
    store = Store(report.folder, stamp=now_utc)
    try:
        if dry:
            work = _Mirror(Remote(name), report, voice, fresh=fresh)
            return Mirrored(remote=name, sent=work.missing())
        with store.locked():
            work = _Mirror(Remote(name, lock_fd=store.lock_fd), report, voice, fresh=fresh)
            missing = work.missing()
            work.send(missing, store.stamp)
            work.finish(missing, store.stamp)
            return Mirrored(remote=name, sent=missing)
    except OSError as error:
        raise unwritable(report.folder, error) from error


class _Mirror:
    def __init__(self, remote: Remote, report: Report, voice: Voice, *, fresh: bool) -> None:
        self._remote, self._report, self._voice, self._fresh = remote, report, voice, fresh
        key = hashlib.sha256(remote.name.encode()).hexdigest()[:16]
        self._memory = report.folder / ".sync" / f"remote-{key}.json"
        self._there = remote.listing()
        self._known: dict[str, str] = {}

    def missing(self) -> tuple[RemoteFile, ...]:
        """The files that the remote has not, or not with these bytes."""
        alike = [file for file in self._report.files if self._size(file.path) == file.length_bytes]
        known = {} if self._fresh or self._remote.hashes else self._remembered()
        self._known = {file.path: known[file.path] for file in alike if file.path in known}
        self._known |= self._remote.digests("", [file.path for file in alike if file.path not in known])
        return tuple(file for file in self._report.files if self._known.get(file.path) != file.sha256)

    def _size(self, path: str) -> int | None:
        return self._there[path][0] if path in self._there else None

    def _remembered(self) -> dict[str, str]:
        with contextlib.suppress(OSError, ValueError, TypeError, AttributeError):
            told = json.loads(self._memory.read_bytes())
            return {
                path: digest for path, (stamp, digest) in told.items() if stamp == self._there.get(path, (0, ""))[1]
            }
        return {}

    def send(self, files: Sequence[RemoteFile], stamp: str) -> None:
        """Bring them there, verified, under their names."""
        if not files:
            return
        names = [file.path for file in files]
        remote = self._remote
        remote.tidy(INCOMING)
        total_bytes = sum(file.length_bytes for file in files)
        with self._voice.moving(f"{self._report.folder} -> {remote.name}", total_bytes) as moved:
            remote.run(rclone.copy(str(self._report.folder), remote.at(INCOMING)), names=names, on_bytes=moved)
        if not remote.hashes:
            self._voice.say(f"{remote.name} tells no sha256: reading {total_bytes} bytes back")
        found = remote.digests(INCOMING, names)
        if wrong := [file.path for file in files if found.get(file.path) != file.sha256]:
            raise not_verified(remote.name, wrong)
        for top in sorted({name.partition("/")[0] for name in names}):
            below = [name.removeprefix(f"{top}/") for name in names if name.startswith(f"{top}/")]
            replaced = remote.at(f"{PREVIOUS}/{stamp}/{top}")
            remote.run(rclone.move(remote.at(f"{INCOMING}/{top}"), remote.at(top), replaced=replaced), names=below)

    def finish(self, sent: Sequence[RemoteFile], stamp: str) -> None:
        """Say there, in files, that everything is there."""
        remote, report = self._remote, self._report
        if sent:
            self._there = remote.listing()
        self._known |= {file.path: file.sha256 for file in sent}
        if gone := [file.path for file in report.files if self._size(file.path) != file.length_bytes]:
            raise LaunchError(
                f"{remote.name} lost {len(gone)} files under way: {', '.join(gone[:5])}",
                why="they were there, verified, and do not show under their names now",
                remedy="run the same command again; see that nothing else writes there",
                code=Exit.NOT_VERIFIED,
            )
        told = {"host": report.host, "root": report.root, "taken_at": stamp, "files": records(report.files)}
        old = remote.run(rclone.read(remote.at(SUMS)), fine=NOT_THERE)
        earlier = {name: digest for name, digest in parse_sums(old).items() if name in self._there}
        sums = format_sums({**earlier, **{file.path: file.sha256 for file in report.files}}).encode()
        if sent or old != sums:
            remote.publish(MANIFEST, to_json(told))
            remote.publish(SUMS, sums)
            remote.tidy(INCOMING)
        seen = {path: (self._there[path][1], digest) for path, digest in self._known.items() if path in self._there}
        with contextlib.suppress(OSError):  # it costs time, and nothing else
            publish(self._memory, json.dumps(seen).encode())
