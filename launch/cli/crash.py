"""A fault of our own: a short message, and the traceback in a file."""

from __future__ import annotations

import os
import sys
import time
import traceback
from pathlib import Path

import click

from launch.errors import Exit
from launch.secrets import redact


def report(error: Exception) -> int:
    """Write the crash file; returns the exit code."""
    folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "minimind-launch"
    path = folder / f"crash-{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}.txt"
    text = redact(f"launch {' '.join(sys.argv[1:])}\n\n{''.join(traceback.format_exception(error))}")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        path.chmod(0o600)
    except OSError:
        click.echo(text, err=True)
    click.echo(f"error: a fault of launch itself: {type(error).__name__}: {error}", err=True)
    click.echo(f"  why: this should not happen\n  remedy: please report it with {path}", err=True)
    return int(Exit.BUG)
