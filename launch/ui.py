"""All that draws: paragraphs, tables, progress, and logs on a terminal. rich is imported by what needs it."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, BinaryIO

from launch.errors import LaunchError, printable

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
        cells = [printable("-" if cell is None else str(cell)) for cell in row]
        drawn.add_row(*(Text(cell, style=COLOURS.get(cell, "")) for cell in cells))
    with console.capture() as capture:
        console.print(drawn)
    print("\n".join(line.rstrip() for line in capture.get().splitlines()), flush=True)  # noqa: T201


class LogWriter:
    """Passes log bytes on: unchanged into a pipe or file, on a terminal only text, colour, newline, tab and return."""

    def __init__(self, out: BinaryIO, *, terminal: bool) -> None:
        self._out, self._terminal, self._held = out, terminal, b""

    def __call__(self, data: bytes) -> None:
        """Write and flush."""
        if self._terminal:
            data, self._held = clean(self._held + data)
        self._out.write(data)
        self._out.flush()


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
