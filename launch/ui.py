"""All that draws: paragraphs, tables, progress, and logs on a terminal. rich is imported by what needs it."""

from __future__ import annotations

import json
import os
import re
import shutil
import sys
import textwrap
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, BinaryIO, TextIO, cast

from launch.errors import LaunchError, printable
from launch.secrets import redact, redact_stream

COLOURS = {
    "RUNNING": "green",
    "STARTING": "cyan",
    "SUCCEEDED": "bold green",
    "STOPPED": "yellow",
    "STALLED": "yellow",
    "FAILED": "bold red",
    "LOST": "bold red",
    "UNKNOWN": "magenta",
}
HELD_BACK_BYTES = 64


class Terminal:
    """Talk on stderr: plain lines, and progress bars where somebody watches."""

    def say(self, text: str) -> None:
        """One line, with whatever a host put into it made printable."""
        print(printable(text), file=sys.stderr, flush=True)  # noqa: T201

    @contextmanager
    def moving(self, label: str, total_bytes: int) -> Iterator[Callable[[int], None]]:
        """A progress bar on a terminal, else one line."""
        if not sys.stderr.isatty():
            self.say(f"{label} ({total_bytes} bytes)")
            yield lambda _bytes: None
            return
        from rich.console import Console
        from rich.progress import (
            BarColumn,
            DownloadColumn,
            Progress,
            TextColumn,
            TimeRemainingColumn,
            TransferSpeedColumn,
        )

        columns = (
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            DownloadColumn(),
            TransferSpeedColumn(),
            TimeRemainingColumn(),
        )
        with Progress(*columns, console=Console(stderr=True)) as progress:
            task = progress.add_task(printable(label), total=total_bytes)
            yield lambda count: progress.advance(task, count)


class _Hiding:
    """A text stream that writes no secret; all else is the stream's own."""

    encoding = "utf-8"  # click wraps the bytes below a stream that says ASCII, and would write past this one

    def __init__(self, stream: Any) -> None:
        self._stream = stream
        if stream.encoding.lower() not in ("utf-8", "utf8"):
            stream.reconfigure(errors="backslashreplace")

    def write(self, text: str) -> int:
        self._stream.write(redact(text))
        return len(text)

    def writelines(self, lines: Iterable[str]) -> None:
        for line in lines:
            self.write(line)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def hide_secrets() -> None:
    """Let nothing that is written to stdout or stderr as text show a known secret."""
    if not isinstance(sys.stdout, _Hiding):
        sys.stdout, sys.stderr = cast(TextIO, _Hiding(sys.stdout)), cast(TextIO, _Hiding(sys.stderr))


def paragraph(error: LaunchError) -> None:
    """An error for people: what, why, remedy."""
    print(f"{_emphasis('error: ', '1;31')}{error}", file=sys.stderr, flush=True)  # noqa: T201


def _emphasis(text: str, code: str) -> str:
    return f"\x1b[{code}m{text}\x1b[0m" if sys.stderr.isatty() and "NO_COLOR" not in os.environ else text


def table(columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    """Rows in aligned columns on stdout; a cell that is a state has its colour on a terminal."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console() if sys.stdout.isatty() else Console(width=400, no_color=True)
    drawn = Table(*columns, box=None, pad_edge=False, header_style="bold")
    for row in rows:
        cells = [_cell("-" if cell is None else str(cell)) for cell in row]
        drawn.add_row(*(Text(cell, style=COLOURS.get(cell, "")) for cell in cells))
    with console.capture() as capture:
        console.print(drawn)
    print("\n".join(line.rstrip() for line in capture.get().splitlines()), flush=True)  # noqa: T201


def checklist(rows: Sequence[tuple[str, str, str, str | None]]) -> None:
    """Verdict, name, what was found and a remedy, a line each on stdout; wrapped and coloured on a terminal."""
    watched = sys.stdout.isatty()
    width = max(40, shutil.get_terminal_size().columns) if watched else 1 << 16
    longest = min(14, max((len(name) for _, name, _, _ in rows), default=0))
    margin = " " * (longest + 8)
    colours = {"ok": "32", "warn": "33", "unfit": "1;31"} if watched and "NO_COLOR" not in os.environ else {}
    for verdict, name, found, remedy in rows:
        head = f"{verdict:5}  {name:{longest}}"
        if len(head) > len(margin) - 1:  # a long name has a line of its own
            lines = [head, *textwrap.wrap(printable(found), width, initial_indent=margin, subsequent_indent=margin)]
        else:
            lines = textwrap.wrap(printable(found), width, initial_indent=f"{head} ", subsequent_indent=margin)
        if remedy is not None:
            lines += textwrap.wrap(
                f"-> {printable(remedy)}", width, initial_indent=margin, subsequent_indent=f"{margin}   "
            )
        if verdict in colours:
            lines[0] = f"\x1b[{colours[verdict]}m{verdict:5}\x1b[0m{lines[0][5:]}"
        print("\n".join(lines), flush=True)  # noqa: T201


def _cell(text: str) -> str:
    """One line, whatever another launcher or a host wrote there."""
    return printable(text).replace("\n", "\\n").replace("\t", "\\t")


class LogWriter:
    """Passes log bytes on: unchanged into a pipe or file, on a terminal only text, colour, newline, tab and return.

    Known secrets are replaced everywhere; what may be the beginning of one waits for more, or for :meth:`end`.
    """

    def __init__(self, out: BinaryIO, *, terminal: bool) -> None:
        self._out, self._terminal, self._held = out, terminal, b""
        self._secret = b""

    def __call__(self, data: bytes) -> None:
        """Write and flush."""
        data, self._secret = redact_stream(self._secret + data)
        self._write(data)

    def end(self) -> None:
        """Nothing follows: write what was held back."""
        self._write(self._secret)
        self._secret = b""

    def _write(self, data: bytes) -> None:
        if self._terminal:
            data, self._held = clean(self._held + data)
        self._out.write(data)
        self._out.flush()


class JsonLines:
    """Passes a log on as JSON, an object a line: the given fields, and ``line``, its text without what ends it."""

    def __init__(self, out: BinaryIO, **fields: Any) -> None:
        self._out, self._fields, self._held = out, fields, b""

    def __call__(self, data: bytes) -> None:
        """Write every line that is whole, and flush."""
        *whole, self._held = (self._held + data).split(b"\n")
        for line in whole:
            text = redact(line.decode("utf-8", "replace").removesuffix("\r"))
            self._out.write(json.dumps({**self._fields, "line": text}).encode() + b"\n")
        self._out.flush()

    def close(self) -> None:
        """Write the line that nothing ended, if there is one."""
        if self._held:
            self(b"\n")


_COLOUR = rb"\x1b\[[0-9;:]{0,32}m"
_UNSAFE = re.compile(
    rb"(" + _COLOUR + rb")"
    rb"|\x1b\[[0-?]*[ -/]*[@-~]"  # other control sequences
    rb"|\x1b[\]PX^_][^\x07\x1b]*(?:\x07|\x1b\\)?"  # titles, clipboards, device strings
    rb"|\x1b[ -/]*[0-~]?"
    rb"|\xc2[\x80-\x9f]"  # the same as UTF-8 C1 controls
    rb"|[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]"
)
_UNFINISHED = re.compile(rb"(?:\x1b(?:\[[0-?]*[ -/]*|[\]PX^_][^\x07\x1b]*\x1b?|[ -/]*)|\xc2)\Z")


def clean(data: bytes) -> tuple[bytes, bytes]:
    """The text without control characters but newline, tab, return, colour (and what is unfinished)."""
    held = b""
    if (found := _UNFINISHED.search(data)) and len(found[0]) <= HELD_BACK_BYTES:
        data, held = data[: found.start()], found[0]
    return _UNSAFE.sub(lambda match: match[1] or b"", data), held
