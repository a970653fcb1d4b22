"""`launch ps`: the runs of every host."""

from __future__ import annotations

from contextlib import ExitStack

import click

from launch.cli import session
from launch.runs.find import Sight, survey
from launch.runs.observe import Run
from launch.ui import paragraph, table

NEWEST = 10
COLUMNS = ("run_id", "name", "host", "state", "reason", "last_step", "loss", "nproc", "executor")


@click.command()
@click.option("--host", help="Only this host.")
@click.option(
    "--all", "everything", is_flag=True, help=f"Older runs too, not only the {NEWEST} newest and those alive."
)
@session.json_option
def ps(host: str | None, everything: bool, as_json: bool) -> int:
    """Show what runs there are, wherever they were started from.

    A host that cannot be asked is UNKNOWN, and makes the exit code 4; the others are shown all the same.
    """
    known = session.load()
    hosts = [known.host(host)] if host else list(known.hosts.values())
    with ExitStack() as stack:
        sights = survey(known, hosts, stack)
    rows = []
    for sight in sights:
        if sight.error:
            paragraph(sight.error)
            session.terminal.say(f"{sight.host.name} is UNKNOWN: what it runs cannot be told")
            rows.append(_unknown(sight))
        rows += [run.row() for run in _shown(sight.runs, everything)]
    rows.sort(key=lambda row: str(row["run_id"] or ""))
    if as_json:
        session.print_json(rows)
    elif rows:
        table(COLUMNS, [[_cell(row[column]) for column in COLUMNS] for row in rows])
    else:
        session.terminal.say(f"no runs on {', '.join(h.name for h in hosts)}; start one with `launch run`")
    return session.worst(sight.error.code for sight in sights if sight.error)


def _shown(runs: tuple[Run, ...], everything: bool) -> list[Run]:
    newest = runs if everything else runs[-NEWEST:]
    return [run for run in runs if run in newest or not run.state.state.ended]


def _unknown(sight: Sight) -> dict[str, object]:
    said = {"what": sight.error.what, "why": sight.error.why, "remedy": sight.error.remedy} if sight.error else None
    keys = ("run_id", "name", "stage", "reason", "attempt", "last_step", "loss", "nproc", "executor", "run_dir")
    return {**dict.fromkeys(keys), "created_at": None, "host": sight.host.name, "state": "UNKNOWN", "said": said}


def _cell(value: object) -> object:
    return f"{value:.4g}" if isinstance(value, float) else value
