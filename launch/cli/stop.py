"""`launch stop`: let a run save and leave."""

from __future__ import annotations

from contextlib import ExitStack

import click

from launch.cli import session
from launch.runs import control
from launch.runs.find import resolve
from launch.ui import paragraph
from minimind.rundir import State


@click.command()
@click.argument("run")
@click.option(
    "--timeout", "timeout_s", type=click.FloatRange(0), default=330.0, show_default=True, help="Seconds to wait."
)
@click.option("--now", is_flag=True, help="End it at once: no checkpoint, steps since the last one are lost.")
@click.option("--host", help="Look on this host only.")
@session.json_option
def stop(run: str, timeout_s: float, now: bool, host: str | None, as_json: bool) -> int:
    """Let RUN save a checkpoint and leave; `launch resume` goes on from there."""
    known = session.load()
    with ExitStack() as stack:
        transport, found = resolve(run, known, stack, host=host, warn=paragraph)
        ended = control.stop(transport, found, session.terminal, timeout_s=timeout_s, now=now)
    already = "already " if found.state.state.ended else ""
    told = "was never started" if ended.state.state is State.PREPARED else f"{already}{ended.state.state}"
    session.terminal.say(f"{ended.run_id} {told}, last step {ended.state.last_step}")
    if now and ended.said.get("why"):
        session.terminal.say(str(ended.said["why"]))
    if as_json:
        session.print_json(ended.row())
    return 0
