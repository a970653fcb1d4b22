"""Giving a host back, and writing down when its clock stopped and what it had cost by then."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
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


def give_back(host: Host, findings: Findings, *, home: Path, now: datetime) -> Receipt:
    """Run the host's release_command on this machine, and append a receipt to launch.released.jsonl.

    Raises:
        LaunchError: HOST_NOT_READY when there is no command, or when it failed: then the clock still runs.
    """
    findings.refuse()
    if not host.release_command:
        raise LaunchError(
            f"{host.name} is ready to be released, and the clock still runs",
            why="launch.toml has no release_command for it",
            remedy="press release (or destroy) in the provider's console now; everything is at home, verified",
            code=Exit.HOST_NOT_READY,
        )
    done = subprocess.run(
        ["sh", "-c", host.release_command],
        stdin=subprocess.DEVNULL,
        stdout=sys.stderr,
        env={**os.environ, "LAUNCH_HOST": host.name},
        cwd=home,
        check=False,
    )
    if done.returncode:
        raise LaunchError(
            f"{host.name} was not released: the clock still runs",
            why=f"its release_command ended with code {done.returncode}",
            remedy="correct release_command in launch.toml, or press release in the provider's console",
            code=Exit.HOST_NOT_READY,
        )
    receipt = _receipt(host, findings, now)
    with open(os.open(home / JOURNAL, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600), "a", encoding="utf-8") as journal:
        journal.write(json.dumps(dataclasses.asdict(receipt), ensure_ascii=False) + "\n")
        journal.flush()
        os.fsync(journal.fileno())
    return receipt


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
    times = [datetime.strptime(run.run_id[:15], "%Y%m%d-%H%M%S").replace(tzinfo=UTC) for run in runs]
    return min(times, default=None)
