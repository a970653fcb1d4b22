"""`launch migrate`: from one host to another, step by step."""

from __future__ import annotations

from contextlib import ExitStack
from datetime import UTC, datetime
from typing import Any

import click

from launch import flags
from launch.cli import migrating, session
from launch.cli.run import Command, Ranks, Stage
from launch.inventory import Host
from launch.runs.start import Request
from launch.transport import Transport, connect
from minimind.catalog import CATALOG


@click.command(cls=Command)
@click.argument("source", metavar="FROM")
@click.argument("target", metavar="TO")
@click.option("--run", "stage", type=Stage(list(CATALOG)), help="Start this stage there, not the interrupted run.")
@click.option("--nproc", type=Ranks(), help="Ranks there.  [default: one a GPU, else as before]")
@click.option("--wait", is_flag=True, help="Let what runs on FROM end by itself instead of stopping it.")
@click.option("--again", is_flag=True, help="Begin anew; what has arrived is not sent twice.")
@click.option("--dry-run", is_flag=True, help="Print the plan with bytes, time and money; change nothing anywhere.")
@session.json_option
@click.argument("trainer_flags", nargs=-1, type=click.UNPROCESSED, metavar="[-- TRAINER FLAGS]")
def migrate(source: str, target: str, stage: str | None, trainer_flags: tuple[str, ...], **asked: Any) -> int:
    """Move from host FROM to host TO: environment, data, out/ and unfinished runs, verified, tried, and going on there.

    Cut off anywhere, the same command goes on. FROM keeps everything.
    """
    from launch.migrate import Asked, Journal, Move, carry_out

    if trainer_flags and stage is None:
        raise click.UsageError("flags for the trainer need a stage to start: --run STAGE; a run goes on with its own")
    if flags.value_of(trainer_flags, "run_dir") is not None:
        raise click.UsageError("--run_dir is decided by launch")
    check = session.flag_check(stage, trainer_flags) if stage else None
    known = session.load()
    hosts = known.host(source), known.host(target)
    if (hosts[0].ssh, hosts[0].root) == (hosts[1].ssh, hosts[1].root):
        raise click.UsageError(f"{source} and {target} are the same place")
    if check and (asked_help := check.result()) is not None:
        click.echo(asked_help, nl=False)
        return 0
    request = Asked(
        source=hosts[0], target=hosts[1], stage=stage, flags=trainer_flags, nproc=asked["nproc"], wait=asked["wait"]
    )
    journal = Journal(known.home, source, target)
    with ExitStack() as stack:

        def far(host: Host) -> Transport:
            return stack.enter_context(connect(host, known))

        def to_start(host: Host, stage: str, words: tuple[str, ...], nproc: int | None) -> Request:
            return session.request(host, stage, words, nproc=nproc, name=None)

        here = far(known.host("local"))
        move = Move(
            request,
            inventory=known,
            connect=far,
            ends=lambda transport: session.ends(transport, here, known),
            laptop=session.laptop(known.home),
            request=to_start,
            secrets=session.vault().pick,
            voice=session.terminal,
            journal=journal,
            now_utc=_now,
        )
        if asked["dry_run"]:
            return migrating.forecast(move, as_json=asked["as_json"])
        stack.enter_context(journal.locked())
        journal.begin(request.to_dict(), now_utc=_now(), again=asked["again"])
        ended = journal.ended
        report = carry_out(move)
    session.print_json(report) if asked["as_json"] else migrating.show(report, again=ended)
    return 0


def _now() -> str:
    return datetime.now(UTC).strftime("%Y%m%dT%H%M%SZ")
