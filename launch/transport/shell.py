"""The whole of a transport, kept with nothing but a POSIX shell on the far side."""

from __future__ import annotations

import abc
import contextlib
import hashlib
import io
import os
import secrets
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from pathlib import Path
from typing import BinaryIO, Self

from launch.errors import Exit, LaunchError
from launch.inventory import Host
from launch.transport.base import (
    CHUNK_BYTES,
    MAX_OUTPUT_BYTES,
    Result,
    Transport,
    failed,
    ignore,
    last_lines,
    shown,
    too_much,
)
from launch.transport.running import Running

WRAPPER = ("sh", "-c", 'LC_ALL=C; export LC_ALL; "$@"; exit $?', "sh")
"""Keeps a shell as parent, so that a missing command is 127 and a signal n is 128 + n on every transport."""


class ShellTransport(abc.ABC):
    """Everything of :class:`Transport`, given a way to start a command."""

    host: Host

    @abc.abstractmethod
    def start(self, argv: Sequence[str], stdin: Iterable[bytes]) -> Running:
        """Start a command with LC_ALL=C; one that cannot be found ends with 127 as in a shell."""

    @abc.abstractmethod
    def close(self) -> None:
        """Let go of the connection."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def read(
        self, argv: Sequence[str], *, stdin: bytes = b"", timeout_s: float | None = None, check: bool = True
    ) -> Result:
        """Run a command that changes nothing."""
        return self._run(argv, [stdin] if stdin else [], timeout_s=timeout_s, check=check)

    def run(
        self, argv: Sequence[str], *, stdin: bytes = b"", timeout_s: float | None = None, check: bool = True
    ) -> Result:
        """Run a command that changes something."""
        return self._run(argv, [stdin] if stdin else [], timeout_s=timeout_s, check=check)

    def feed(
        self, argv: Sequence[str], local: Path, *, offset: int = 0, on_bytes: Callable[[int], None] = ignore
    ) -> Result:
        """Run a command that changes something, with a local file from ``offset`` on as its stdin."""
        with _readable(local) as file:
            file.seek(offset)
            return self._run(argv, _watched(file, on_bytes), timeout_s=None, check=False)

    def stream(self, argv: Sequence[str], *, stdin: bytes = b"") -> Generator[bytes, None, None]:
        """Stdout chunk by chunk."""
        with contextlib.closing(self.start(argv, [stdin] if stdin else [])) as running:
            yield from running.chunks(None)
            code, stderr = running.finish(None)
        if code:
            raise failed(self.host.name, argv, code, stderr)

    def fetch(
        self, remote: str, local: Path, *, offset: int, length: int, on_bytes: Callable[[int], None] = ignore
    ) -> None:
        """Append bytes [offset, length) of a remote file to a local part file."""
        argv = ["sh", "-c", _FETCH, "sh", remote, str(offset + 1), str(length - offset)]
        wanted = length - offset
        code = 0
        with (
            open(os.open(local, os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW, 0o600), "wb") as part,
            contextlib.closing(self.start(argv, [])) as running,
        ):
            part.truncate(offset)
            part.seek(offset)
            for data in running.chunks(None) if wanted else ():
                kept = data[:wanted]
                part.write(kept)
                wanted -= len(kept)
                on_bytes(len(kept))
                if not wanted:
                    break
            code = 0 if not wanted else running.finish(None)[0]
            part.flush()
            os.fsync(part.fileno())
        if wanted:
            raise LaunchError(
                f"{self.host.name}: {remote} ended {wanted} bytes early",
                why="it is gone or unreadable" if code else "it became shorter while it was being copied",
                remedy="try again when nothing writes it",
                code=Exit.NOT_VERIFIED,
            )

    def send(self, local: Path, remote: str, *, on_bytes: Callable[[int], None] = ignore) -> None:
        """Copy a local file, verified, atomically."""
        with _readable(local) as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
            file.seek(0)
            self._store(_watched(file, on_bytes), remote, digest=digest, mode=0o600)

    def publish(self, remote: str, data: bytes, *, mode: int = 0o600) -> None:
        """Give a remote path these bytes, all at once."""
        self._store([data], remote, digest=hashlib.sha256(data).hexdigest(), mode=mode)

    def _store(self, chunks: Iterable[bytes], remote: str, *, digest: str, mode: int) -> None:
        argv = ["sh", "-c", _STORE, "sh", remote, f".tmp-{secrets.token_hex(8)}", digest, f"{mode:o}"]
        result = self._run(argv, chunks, timeout_s=None, check=False)
        if not result.code:
            return
        torn = result.code == _TORN
        raise LaunchError(
            f"{self.host.name}: {remote} could not be written",
            why="other bytes arrived than were sent" if torn else last_lines(result.stderr) or f"exit {result.code}",
            remedy="try again" if torn else f"make room and permissions for it on {self.host.name}",
            code=Exit.NOT_VERIFIED if torn else Exit.HOST_NOT_READY,
        )

    def _run(self, argv: Sequence[str], stdin: Iterable[bytes], *, timeout_s: float | None, check: bool) -> Result:
        deadline = None if timeout_s is None else time.monotonic() + timeout_s
        out = bytearray()
        try:
            with contextlib.closing(self.start(argv, stdin)) as running:
                for data in running.chunks(deadline):
                    out += data
                    if len(out) > MAX_OUTPUT_BYTES:
                        raise too_much(self.host.name, argv)
                code, stderr = running.finish(deadline)
        except TimeoutError as error:
            raise LaunchError(
                f"{self.host.name} gave no answer for {timeout_s:g} s",
                why=f"`{shown(argv)}` did not end",
                remedy=f"look at {self.host.name} by ssh, then try again",
                code=Exit.UNREACHABLE,
            ) from error
        if check and code:
            raise failed(self.host.name, argv, code, stderr)
        return Result(code, bytes(out), stderr)


_TORN = 65
_EXPAND = 'case $1 in "~") p=$HOME;; "~/"*) p=$HOME/${1#??};; *) p=$1;; esac\n'
_FETCH = (
    _EXPAND
    + """[ -f "$p" ] && exec 3<"$p" || exit 66
if command -v head >/dev/null 2>&1; then tail -c "+$2" <&3 | head -c "$3"; else tail -c "+$2" <&3; fi
"""
)
_STORE = (
    _EXPAND
    + f"""umask 077
case $p in /*) ;; *) echo "not an absolute path: $p" >&2; exit 64;; esac
[ ! -d "$p" ] || {{ echo "is a folder: $p" >&2; exit 73; }}
d=${{p%/*}}/
mkdir -p -- "$d" || exit 73
t=$d$2
trap 'rm -f -- "$t"' EXIT
trap 'exit 1' HUP INT TERM
cat >"$t" || exit 74
if command -v sha256sum >/dev/null 2>&1; then s=$(sha256sum <"$t"); else s=$(shasum -a 256 <"$t"); fi
[ "${{s%% *}}" = "$3" ] || exit {_TORN}
chmod "$4" "$t" || exit 74
sync "$t" 2>/dev/null || sync
mv -f -- "$t" "$p" || exit 74
sync "$d" 2>/dev/null || :
"""
)


@contextlib.contextmanager
def _readable(local: Path) -> Iterator[io.BufferedReader]:
    try:
        with open(local, "rb") as file:
            yield file
    except OSError as error:
        raise LaunchError(
            f"{local} cannot be read",
            why=error.strerror or str(error),
            remedy="name a file that this user can read",
            code=Exit.INVALID,
        ) from error


def _watched(file: BinaryIO, on_bytes: Callable[[int], None]) -> Iterator[bytes]:
    while data := file.read(CHUNK_BYTES):
        yield data
        on_bytes(len(data))


def host_path(transport: Transport, path: str) -> str:
    """The path with a leading ``~`` replaced by the home folder on the host."""
    if path != "~" and not path.startswith("~/"):
        return path
    return transport.read(["sh", "-c", 'printf %s "$HOME"']).stdout.decode("utf-8", "surrogateescape") + path[1:]
