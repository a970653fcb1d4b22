"""Giving a host back, and writing down when its clock stopped and what it had cost by then."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from io import FileIO
from pathlib import Path

from launch.errors import Exit, LaunchError
from launch.inventory import Host
from launch.release.check import Findings
from launch.runs.observe import Run

JOURNAL = "launch.released.jsonl"


@dataclass(frozen=True, kw_only=True)
class Receipt:
    """One host given back. ``spent_at_least`` counts from its first run; None without a price or a run."""

    host: str
    ssh: str | None
    released_at: str
    first_run_at: str | None
    hours: float | None
    price_per_hour: float | None
    currency: str
    spent_at_least: float | None
    files: int
    bytes: int
    home: str


def give_back(host: Host, findings: Findings, *, home: Path, now: Callable[[], datetime]) -> Receipt:
    """Run the host's release_command on this machine, and append a receipt to launch.released.jsonl.

    Raises:
        LaunchError: HOST_NOT_READY when there is no command, when it failed, or when there is no place for the receipt:
            then the clock still runs. INCOMPLETE when it was released and the receipt could not be written.
    """
    findings.refuse()
    if not host.release_command:
        raise LaunchError(
            f"{host.name} is ready to be released, and the clock still runs",
            why="launch.toml has no release_command for it",
            remedy="press release (or destroy) in the provider's console now; everything is at home, verified",
            code=Exit.HOST_NOT_READY,
        )
    with _journal(host, home) as journal:  # not buffered: closing it writes nothing
        if code := _run(host.release_command, host.name, home):
            raise LaunchError(
                f"{host.name} was not released: the clock still runs",
                why=f"its release_command ended with code {code}",
                remedy="correct release_command in launch.toml, or press release in the provider's console",
                code=Exit.HOST_NOT_READY,
            )
        receipt = _receipt(host, findings, now())
        line = json.dumps(dataclasses.asdict(receipt), ensure_ascii=False)
        try:
            journal.write(f"{line}\n".encode())
            os.fsync(journal.fileno())
        except OSError as error:
            raise LaunchError(
                f"{host.name} was released, and its receipt could not be written",
                why=f"{home / JOURNAL}: {error}",
                remedy=f"keep this line: {line}",
                code=Exit.INCOMPLETE,
            ) from error
    return receipt


def _journal(host: Host, home: Path) -> FileIO:
    try:
        return FileIO(os.open(home / JOURNAL, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600), "a")
    except OSError as error:
        raise LaunchError(
            f"{host.name} was not released: the clock still runs",
            why=f"its receipt cannot be written: {error}",
            remedy=f"make {home / JOURNAL} a file that can be written, then the same again",
            code=Exit.HOST_NOT_READY,
        ) from error


def _run(command: str, host: str, home: Path) -> int:
    """The command's exit code. What it prints goes to stderr line by line, secrets left out as from all we print."""
    process = subprocess.Popen(
        ["sh", "-c", command],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env={**os.environ, "LAUNCH_HOST": host},
        cwd=home,
        text=True,
        errors="replace",
    )
    with process:
        for line in process.stdout or ():
            sys.stderr.write(line)
            sys.stderr.flush()
    return process.returncode


def _receipt(host: Host, findings: Findings, now: datetime) -> Receipt:
    first = _first_run(findings.runs)
    hours = max(0.0, (now - first).total_seconds() / 3600) if first else None
    price = host.price_per_hour
    return Receipt(
        host=host.name,
        ssh=host.ssh,
        released_at=now.strftime("%Y-%m-%dT%H:%M:%SZ"),
        first_run_at=first.strftime("%Y-%m-%dT%H:%M:%SZ") if first else None,
        hours=None if hours is None else round(hours, 3),
        price_per_hour=price,
        currency=host.currency,
        spent_at_least=None if hours is None or price is None else round(hours * price, 2),
        files=findings.files,
        bytes=findings.bytes,
        home=str(findings.folder),
    )


def _first_run(runs: Iterable[Run]) -> datetime | None:
    """From the run ids: they carry the host's clock, and nobody edits them."""
    times = []
    for run in runs:
        with contextlib.suppress(ValueError):  # a folder that somebody named has any name
            times.append(datetime.strptime(run.run_id[:15], "%Y%m%d-%H%M%S").replace(tzinfo=UTC))
    return min(times, default=None)
