"""A transport that reads and never changes: what would have been changed is written down."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Self

from launch.errors import printable
from launch.transport.base import Result, Transport, ignore

Verb = Literal["run", "send", "publish", "fetch"]


@dataclass(frozen=True, kw_only=True)
class DryStep:
    """One thing that was not done."""

    host: str
    verb: Verb
    argv: tuple[str, ...] = ()
    path: str = ""
    source: str = ""
    length_bytes: int = 0
    data: bytes = b""

    def describe(self) -> str:
        """The step as one printable line; a script's text keeps its lines."""
        match self.verb:
            case "run":
                return printable(f"{self.host}: run {shlex.join(self.argv)}")
            case "publish":
                return printable(f"{self.host}: write {self.path} ({self.length_bytes} bytes)")
            case _:
                return printable(f"{self.host}: {self.verb} {self.source} -> {self.path} ({self.length_bytes} bytes)")


class DryTransport:
    """Passes reads on to ``inner``; appends everything else to ``record``."""

    def __init__(self, inner: Transport, record: list[DryStep]) -> None:
        self.host, self._inner, self._record = inner.host, inner, record

    def read(
        self, argv: Sequence[str], *, stdin: bytes = b"", timeout_s: float | None = None, check: bool = True
    ) -> Result:
        """Really run it: it changes nothing."""
        return self._inner.read(argv, stdin=stdin, timeout_s=timeout_s, check=check)

    def run(
        self, argv: Sequence[str], *, stdin: bytes = b"", timeout_s: float | None = None, check: bool = True
    ) -> Result:
        """Write it down."""
        self._step("run", argv=tuple(argv), data=stdin, length_bytes=len(stdin))
        return Result(0, b"", b"")

    def feed(
        self, argv: Sequence[str], local: Path, *, offset: int = 0, on_bytes: Callable[[int], None] = ignore
    ) -> Result:
        """Write it down."""
        self._step("run", argv=tuple(argv), source=str(local), length_bytes=local.stat().st_size - offset)
        return Result(0, b"", b"")

    def stream(self, argv: Sequence[str], *, stdin: bytes = b"") -> Generator[bytes, None, None]:
        """Really run it: it changes nothing."""
        return self._inner.stream(argv, stdin=stdin)

    def fetch(
        self, remote: str, local: Path, *, offset: int, length: int, on_bytes: Callable[[int], None] = ignore
    ) -> None:
        """Write it down; no local file is touched."""
        self._step("fetch", path=str(local), source=remote, length_bytes=length - offset)

    def send(self, local: Path, remote: str, *, on_bytes: Callable[[int], None] = ignore) -> None:
        """Write it down."""
        self._step("send", path=remote, source=str(local), length_bytes=local.stat().st_size)

    def publish(self, remote: str, data: bytes, *, mode: int = 0o600) -> None:
        """Write it down."""
        self._step("publish", path=remote, data=data, length_bytes=len(data))

    def _step(self, verb: Verb, **fields: Any) -> None:
        self._record.append(DryStep(host=self.host.name, verb=verb, **fields))

    def close(self) -> None:
        """Close the inner transport."""
        self._inner.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
