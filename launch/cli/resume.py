"""`launch resume`: the next attempt of a run."""

from __future__ import annotations

from contextlib import ExitStack

import click

from launch.cli import following, session
from launch.cli.run import Ranks
from launch.errors import Exit, LaunchError
from launch.inventory import Inventory
from launch.runs import control
from launch.runs.find import resolve
from launch.runs.observe import Run
from launch.transport import Transport, connect
from launch.ui import paragraph


@click.command()
@click.argument("run")
@click.option("--host", help="The host that has the run.")
@click.option("--nproc", type=Ranks(), help="Another number of ranks than before.")
@click.option("--detach", is_flag=True, help="Print the run id and return.")
@session.json_option
def resume(run: str, host: str | None, nproc: int | None, detach: bool, as_json: bool) -> int:
    """Go on with RUN from its last checkpoint, and follow it."""
    known = session.load()
    if host:
        known.host(host)
    with ExitStack() as stack:
        transport, found = _on(host, run, known, stack) or resolve(run, known, stack, warn=paragraph)
        if host and host != found.host:
            raise LaunchError(
                f"{found.run_id} lies on {found.host}, not on {host}",
                why="its checkpoints are there",
                remedy=f"resume it on {found.host}; or move to {host}: launch migrate {found.host} {host}",
                code=Exit.REFUSED,
            )
        here = stack.enter_context(connect(known.host("local"), known))
        ends = session.ends(transport, here, known)
        laptop, secrets = session.laptop(known.home), session.vault().pick
        resumed = control.resume(ends, found, laptop, session.terminal, nproc=nproc, secrets=secrets)
        if resumed is None:
            session.terminal.say(f"{found.run_id} has succeeded at step {found.state.last_step}: nothing to do")
            if as_json:
                session.print_json(found.row())
            return 0
        if detach:
            session.print_json(resumed.row()) if as_json else click.echo(resumed.run_id)
            return 0
        session.terminal.say(f"{resumed.run_id} on {resumed.host}, attempt {resumed.state.attempt}")
        return following.follow_run(stack, known, transport, resumed, as_json=as_json)


def _on(host: str | None, run: str, known: Inventory, stack: ExitStack) -> tuple[Transport, Run] | None:
    """The run on that host: a run that was moved lies on two. None when it is not there, or no host was said."""
    if host is None:
        return None
    try:
        return resolve(run, known, stack, host=host, warn=paragraph)
    except LaunchError as error:
        if error.code != Exit.INVALID:
            raise
        return None
