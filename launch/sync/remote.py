"""What rclone says of a remote, and what it is told to do there; its exit codes and JSON are read, never its prose."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import threading
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from launch.argv import rclone
from launch.errors import Exit, LaunchError, printable

NOT_THERE = (3, 4)
"""Exit codes: no such folder, no such file."""
TEMPORARY = 5
"""Exit code: what more tries may mend."""


class Remote:
    """One place that rclone reaches. Each rclone keeps ``lock_fd`` open, so that a lock outlives a killed launcher."""

    def __init__(self, name: str, *, lock_fd: int | None = None) -> None:
        self.name, self.lock_fd = name, lock_fd
        if shutil.which("rclone") is None:
            raise LaunchError(
                f"{name} cannot be reached",
                why="rclone is not installed on this machine, and it is what speaks to such stores",
                remedy="install it (apt install rclone, brew install rclone) and describe the remote: rclone config",
                code=Exit.HOST_NOT_READY,
            )
        told = self._json(self.run(rclone.features(name)))
        self.hashes = "sha256" in (told.get("Hashes") or ())
        can = told.get("Features") or {}
        if not can.get("Move") and not can.get("Copy"):
            raise LaunchError(
                f"{name} cannot hold checkpoints safely",
                why="it can neither rename nor copy a file by itself, so half a file would show under its final name",
                remedy="give a remote that can, for instance S3, sftp, webdav or a disk",
                code=Exit.INVALID,
            )

    def at(self, path: str) -> str:
        """A path there, as rclone wants it."""
        return rclone.below(self.name, path)

    def listing(self) -> dict[str, tuple[int, str]]:
        """Bytes and stamp of every file there, by path."""
        told = self._json(self.run(rclone.listing(self.name), fine=NOT_THERE) or b"[]")
        return {str(item["Path"]): (int(item["Size"]), f"{item['Size']} {item['ModTime']}") for item in told}

    def _json(self, told: bytes) -> Any:
        try:
            return json.loads(told)
        except ValueError as error:
            raise LaunchError(
                f"{self.name}: rclone's answer makes no sense",
                why=f"it is no JSON ({error})",
                remedy="rclone 1.60 is known to work; see `rclone version`",
                code=Exit.HOST_NOT_READY,
            ) from error

    def digests(self, folder: str, names: Sequence[str]) -> dict[str, str]:
        """sha256 by name of what is there; where the remote cannot tell, everything is read back."""
        if not names:
            return {}
        argv = rclone.hashes(self.at(folder) if folder else self.name, download=not self.hashes)
        told = self.run(argv, names=names, fine=range(1, 10)).decode("utf-8", "surrogateescape")
        found = (re.fullmatch(r"([0-9a-f]{64}) [ *](.+)", line) for line in told.split("\n"))
        return {match[2]: match[1] for match in found if match}

    def tidy(self, folder: str) -> None:
        """Remove what is in the way, if it is there and the remote lets us; nothing relies on it."""
        self.run(rclone.forget(self.at(folder)), fine=range(1, 10))

    def publish(self, name: str, data: bytes) -> None:
        """A small file, read back before it gets its name."""
        aside = self.at(f".sync/incoming/{name}")
        self.run(rclone.put(aside), stdin=data)
        if self.run(rclone.read(aside)) != data:
            raise not_verified(self.name, [name])
        self.run(rclone.rename(aside, self.at(name)))

    def run(
        self,
        argv: Sequence[str],
        *,
        names: Iterable[str] | None = None,
        stdin: bytes = b"",
        fine: Iterable[int] = (),
        on_bytes: Callable[[int], None] | None = None,
    ) -> bytes:
        """Stdout of rclone, with names as lines on its stdin.

        Raises:
            LaunchError: INCOMPLETE when trying again may help, HOST_NOT_READY otherwise. Exit codes in ``fine`` are.
        """
        if names is not None:
            stdin = "".join(f"{name}\n" for name in names).encode()
        process = subprocess.Popen(
            argv,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env={**os.environ, "LC_ALL": "C"},
            pass_fds=() if self.lock_fd is None else (self.lock_fd,),
        )
        log = _Log(on_bytes)
        listener = threading.Thread(target=log.read, args=(process.stderr,), daemon=True)
        with process:
            listener.start()
            feeder = threading.Thread(target=_feed, args=(process.stdin, stdin), daemon=True)
            feeder.start()
            out = process.stdout.read() if process.stdout else b""
            feeder.join()
            listener.join()
        if process.returncode == 0:
            return out
        if process.returncode in set(fine):
            return b"" if process.returncode in NOT_THERE else out
        again = process.returncode == TEMPORARY
        raise LaunchError(
            f"{self.name}: `rclone {argv[1]}` failed",
            why=log.last or f"it ended with exit code {process.returncode} and said nothing",
            remedy="run the same command again: what is there already is not sent twice"
            if again
            else f"see whether `rclone lsd {self.name}` works; rclone config describes remotes",
            code=Exit.INCOMPLETE if again else Exit.HOST_NOT_READY,
        )


class _Log:
    def __init__(self, on_bytes: Callable[[int], None] | None) -> None:
        self._on_bytes, self._sent_bytes, self.last = on_bytes, 0, ""

    def read(self, pipe: Iterable[bytes] | None) -> None:
        """Take in what rclone logs: numbers as they come, and the last trouble."""
        for line in pipe or ():
            try:
                told = json.loads(line)
                message, sent_bytes = str(told["msg"]), int((told.get("stats") or {}).get("bytes", self._sent_bytes))
            except (ValueError, KeyError, TypeError, AttributeError):
                message, sent_bytes, told = line.decode("utf-8", "replace"), self._sent_bytes, {}
            if "stats" not in told and message.strip():
                self.last = printable(" ".join(message.strip().splitlines()[-2:]))[:500]
            if self._on_bytes and sent_bytes > self._sent_bytes:
                self._on_bytes(sent_bytes - self._sent_bytes)
                self._sent_bytes = sent_bytes


def _feed(pipe: object, data: bytes) -> None:
    if pipe is not None:
        try:
            with pipe:  # type: ignore[attr-defined]
                pipe.write(data)  # type: ignore[attr-defined]
        except OSError:
            pass


def not_verified(remote: str, names: Sequence[str]) -> LaunchError:
    """Other bytes came back."""
    return LaunchError(
        f"{remote} has other bytes than were sent: {', '.join(names[:5])}",
        why="their sha256 differs; none of them got its name there",
        remedy="run the same command again; if it happens again, check that store",
        code=Exit.NOT_VERIFIED,
    )
