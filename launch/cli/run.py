"""`launch run`: start a training stage on a host and follow its log."""

from __future__ import annotations

import dataclasses
import difflib
from contextlib import ExitStack
from typing import Any

import click

from launch import flags
from launch.cli import following, session
from launch.runs import names, start
from launch.runs.observe import Run
from launch.transport import DryStep, DryTransport, Transport, connect
from minimind.catalog import CATALOG
from minimind.rundir import RUN_ID, RunState, State


class Stage(click.Choice):  # type: ignore[type-arg]  # not a generic class in every version of click
    """A stage of the catalog; a misspelt one is told the nearest."""

    def fail(self, message: str, param: click.Parameter | None = None, ctx: click.Context | None = None) -> Any:
        """Exit 2, with the nearest name."""
        near = difflib.get_close_matches(message.split("'")[1], CATALOG, n=1) if "'" in message else []
        super().fail(message + (f" Did you mean {near[0]!r}?" if near else ""), param, ctx)


class Ranks(click.ParamType):  # type: ignore[type-arg]
    """A number of ranks, or `auto`."""

    name = "N|auto"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int | None:
        """None for auto."""
        if value is None or value == "auto":
            return None
        if str(value).isdecimal() and int(value) > 0:
            return int(value)
        return self.fail(f"{value!r} is neither a number of ranks, 1 or more, nor 'auto'", param, ctx)


class Command(click.Command):
    """Tells whoever forgot it that trainer flags come after ``--``."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """As click does."""
        try:
            return super().parse_args(ctx, args)
        except click.NoSuchOption as error:
            raise click.UsageError(f"{error.format_message()} Flags for the trainer come after --", ctx) from error


def _name(ctx: click.Context, param: click.Parameter, value: str | None) -> str | None:
    if value is not None and (not names.NAME.fullmatch(value) or value == "last" or RUN_ID.fullmatch(value)):
        raise click.BadParameter("letters, digits, _ . - (64 at most), not `last` and not a run id")
    return value


@click.command(cls=Command)
@click.argument("stage", type=Stage(list(CATALOG)))
@click.option("--host", "hosts", multiple=True, default=["local"], show_default=True, help="Where to train.")
@click.option("--nproc", type=Ranks(), default="auto", show_default=True, help="Ranks; auto is one a GPU, else one.")
@click.option("--name", callback=_name, help="A name that one live run can have.")
@click.option("--data", metavar="FILE", help="JSONL of this machine, or a path on the host.")
@click.option("--dry-run", is_flag=True, help="Print every command, file and byte count; change nothing anywhere.")
@click.option("--detach", is_flag=True, help="Print the run id and return.")
@session.json_option
@click.argument("trainer_flags", nargs=-1, type=click.UNPROCESSED, metavar="[-- TRAINER FLAGS]")
def run(hosts: tuple[str, ...], data: str | None, trainer_flags: tuple[str, ...], **asked: Any) -> int:
    """Start STAGE on a host and follow its log; Ctrl-C leaves the run going."""
    if len(hosts) > 1:
        raise click.UsageError("one host for now: give --host once")
    if flags.value_of(trainer_flags, "run_dir") is not None:
        raise click.UsageError("--run_dir is decided by launch; to go on with a run use `launch resume`")
    if data is not None and flags.value_of(trainer_flags, "data_path") is not None:
        raise click.UsageError("--data and --data_path say the same: give one")
    if data is not None and not data.strip():
        raise click.UsageError("--data is empty: give a file, or leave it away for the stage's default")
    words = (*(("--data_path", data) if data is not None else ()), *trainer_flags)
    known = session.load()
    with ExitStack() as stack:
        transport: Transport = stack.enter_context(connect(known.host(hosts[0]), known))
        here: Transport = stack.enter_context(connect(known.host("local"), known))
        record: list[DryStep] = []
        if asked["dry_run"]:
            transport, here = DryTransport(transport, record), DryTransport(here, record)
        request = session.request(transport.host, asked["stage"], words, nproc=asked["nproc"], name=asked["name"])
        plan = start.plan(request, session.ends(transport, here, known), session.laptop(known.home))
        handle = start.carry_out(plan, transport, here, session.terminal)
        if asked["dry_run"]:
            return _show(plan, record, as_json=asked["as_json"])
        state = RunState(state=State.STARTING, attempt=int(handle.get("attempt", 1)))
        spec = dataclasses.asdict(plan.spec)
        started = Run(
            run_id=plan.spec.run_id, host=hosts[0], run_dir=plan.run_dir, state=state, spec=spec, handle=handle
        )
        if asked["detach"]:
            session.print_json(started.row()) if asked["as_json"] else click.echo(started.run_id)
            return 0
        session.terminal.say(f"{started.run_id} on {hosts[0]}, {plan.spec.nproc} rank(s), {plan.executor.name}")
        return following.follow_run(stack, known, transport, started, as_json=asked["as_json"])


def _show(plan: start.Plan, record: list[DryStep], *, as_json: bool) -> int:
    if as_json:
        steps = [
            {key: value for key, value in dataclasses.asdict(step).items() if key != "data" and value}
            for step in record
        ]
        session.print_json({"spec": dataclasses.asdict(plan.spec), "run_dir": plan.run_dir, "steps": steps})
        return 0
    click.echo(f"would start {plan.spec.run_id}:\n{plan.spec.to_json().decode()}")
    for step in record:
        click.echo(step.describe())
    click.echo(f"{sum(step.length_bytes for step in record)} bytes in {len(record)} steps; nothing was changed")
    return 0
