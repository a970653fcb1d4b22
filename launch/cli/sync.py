"""`launch sync-out`: weights and runs home, once or for as long as a run goes on."""

from __future__ import annotations

from contextlib import ExitStack
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

import click

from launch.cli import session
from launch.cli.synced import tell
from launch.inventory import Inventory
from launch.ui import paragraph

if TYPE_CHECKING:
    from launch import sync
    from launch.transport import Transport


@click.command()
@click.argument("run", required=False)
@click.option("--host", help="From this host.  [default: the only one of launch.toml, or local]")
@click.option(
    "--to", help="Into this folder; rclone:REMOTE:PATH is a second copy beside the one at home.  [default: home]"
)
@click.option("--watch", is_flag=True, help="Copy finished checkpoints until the run has ended.")
@click.option(
    "--without-weights", is_flag=True, help="It is no error that there are none: failed runs leave logs only."
)
@click.option("--checksum", is_flag=True, help="Hash everything anew, also what looks untouched since the last time.")
@click.option("--dry-run", is_flag=True, help="Only show what would be copied.")
@session.json_option
def sync_out(
    run: str | None,
    host: str | None,
    to: str | None,
    watch: bool,
    without_weights: bool,
    checksum: bool,
    dry_run: bool,
    as_json: bool,
) -> int:
    """Bring out/ and runs/ of a host home, verified; with RUN, that run and its weights only.

    SHA256SUMS and manifest.json at the top of the folder are written last: they mean that everything is there.
    With --watch this goes on until RUN, or every run of the host, has ended; a link that drops is made again.
    With --to rclone:REMOTE:PATH (S3 or whatever rclone is configured for) everything is at home first, and sent there
    from here when nothing more comes, with a SHA256SUMS of its own.
    """
    from launch import sync
    from launch.runs.find import resolve
    from launch.transport import connect

    if watch and dry_run:
        raise click.UsageError("--watch has nothing to show beforehand: leave --dry-run away")
    known = session.load()
    remote = sync.remote_of(to)
    target = known.home if to is None or remote else Path.cwd() / to
    with ExitStack() as stack:
        if run is None:
            transport, run_id = stack.enter_context(connect(session.one_host(known, host), known)), None
        else:
            transport, found = resolve(run, known, stack, host=host, warn=paragraph)
            run_id = found.run_id
        if watch:
            report = _watch(stack, transport, known, target, run_id, without_weights=without_weights)
        else:
            report = sync.sync_out(
                transport,
                known,
                folder=target,
                run_id=run_id,
                voice=session.terminal,
                now_utc=_now(),
                dry=dry_run,
                without_weights=without_weights,
                fresh=checksum,
            )
    copied = None
    if remote is not None:
        voice = session.terminal
        copied = sync.mirror(report, remote, voice=voice, now_utc=_now(), dry=dry_run, fresh=checksum)
    if as_json:
        session.print_json({**report.to_dict(), **({} if copied is None else {"remote": copied.to_dict()})})
    elif dry_run:
        for file in report.fetched:
            click.echo(f"{file.length_bytes:>14} {file.path}")
    tell(report, copied, dry_run)
    return 0


def _watch(
    stack: ExitStack, transport: Transport, known: Inventory, folder: Path, run_id: str | None, *, without_weights: bool
) -> sync.Report:
    from launch.runs.watch import watch
    from launch.sync import Rounds
    from launch.transport import connect

    def again() -> Transport:
        return stack.enter_context(connect(transport.host, known))

    rounds = Rounds(known, folder, run_id, session.terminal)
    return watch(again, transport, known, rounds, session.terminal, now_utc=_now, without_weights=without_weights)


def _now() -> str:
    return datetime.now(UTC).strftime("%Y%m%dT%H%M%SZ")
