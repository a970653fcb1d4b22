"""What every transport promises."""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, Self

from launch.errors import Exit, LaunchError, printable
from launch.inventory import Host

CHUNK_BYTES = 1 << 18
MAX_OUTPUT_BYTES = 256 << 20


@dataclass(frozen=True)
class Result:
    """How a command ended: its exit code, and what it wrote (stderr: the last 16 KiB)."""

    code: int
    stdout: bytes
    stderr: bytes

    @property
    def text(self) -> str:
        """Stdout as text, bad UTF-8 replaced, stripped."""
        return self.stdout.decode("utf-8", "replace").strip()


def ignore(_bytes: int) -> None:
    """No one watches the progress."""


class Transport(Protocol):
    """One host's shell and files. Paths on the host are absolute or begin with ``~/``; callers never join an argv."""

    host: Host

    def read(
        self, argv: Sequence[str], *, stdin: bytes = b"", timeout_s: float | None = None, check: bool = True
    ) -> Result:
        """Run a command that changes nothing. ``check`` raises LaunchError when it ends non-zero."""

    def run(
        self, argv: Sequence[str], *, stdin: bytes = b"", timeout_s: float | None = None, check: bool = True
    ) -> Result:
        """Run a command that changes something."""

    def feed(
        self, argv: Sequence[str], local: Path, *, offset: int = 0, on_bytes: Callable[[int], None] = ignore
    ) -> Result:
        """Run a command that changes something, with a local file from ``offset`` on as its stdin; no code raises."""

    def stream(self, argv: Sequence[str], *, stdin: bytes = b"") -> Generator[bytes, None, None]:
        """Stdout of a reading command, chunk by chunk as it comes; LaunchError when it ends non-zero."""

    def fetch(
        self, remote: str, local: Path, *, offset: int, length: int, on_bytes: Callable[[int], None] = ignore
    ) -> None:
        """Append bytes [offset, length) of a remote file to a local part file, cut to ``offset`` bytes before.

        Raises:
            LaunchError: NOT_VERIFIED when the file is missing or shorter than ``length``.
        """

    def send(self, local: Path, remote: str, *, on_bytes: Callable[[int], None] = ignore) -> None:
        """Copy a local file: temporary name in the same folder (made 0700), sha256 checked there, flushed, renamed.

        Raises:
            LaunchError: NOT_VERIFIED when other bytes arrived, HOST_NOT_READY when the host could not store them.
        """

    def publish(self, remote: str, data: bytes, *, mode: int = 0o600) -> None:
        """Give a remote path these bytes, all at once."""

    def close(self) -> None:
        """Let go of the connection."""

    def __enter__(self) -> Self:
        """Leave with close()."""

    def __exit__(self, *_: object) -> None:
        """Close."""


def shown(argv: Sequence[str]) -> str:
    """A command for people: scripts shortened to their arguments."""
    words = ["…" if "\n" in word or len(word) > 200 else word for word in argv]
    return printable(" ".join(words))


def last_lines(stderr: bytes, lines: int = 5) -> str:
    """The end of what a command said, safe to print."""
    return printable("\n".join(stderr.decode("utf-8", "replace").strip().splitlines()[-lines:]))


def failed(name: str, argv: Sequence[str], code: int, stderr: bytes) -> LaunchError:
    """A command on a host that ended non-zero."""
    return LaunchError(
        f"{name}: `{shown(argv)}` failed",
        why=last_lines(stderr) or f"it ended with exit code {code} and said nothing",
        remedy=f"correct that on {name} and try again",
        code=Exit.HOST_NOT_READY,
    )


def too_much(name: str, argv: Sequence[str]) -> LaunchError:
    """A host that talks without end."""
    return LaunchError(
        f"{name}: `{shown(argv)}` wrote more than {MAX_OUTPUT_BYTES >> 20} MiB",
        why="no answer that launch asks for is that long",
        remedy=f"look at {name} by ssh",
        code=Exit.HOST_NOT_READY,
    )
