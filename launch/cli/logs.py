"""`launch logs`: a run's log, byte for byte."""

from __future__ import annotations

from contextlib import ExitStack

import click

from launch.cli import following, session
from launch.errors import Exit, LaunchError
from launch.runs import control, follow
from launch.runs.find import resolve
from launch.ui import paragraph


@click.command()
@click.argument("run")
@click.option("-f", "--follow", "keep_on", is_flag=True, help="Go on until the run has ended.")
@click.option("--rank", type=click.IntRange(0), help="The output of one rank alone.")
@click.option("--attempt", type=click.IntRange(1), help="An earlier attempt.  [default: the last]")
@click.option("--host", help="Look on this host only.")
def logs(run: str, keep_on: bool, rank: int | None, attempt: int | None, host: str | None) -> int:
    """Print the log of RUN: an id, the beginning of one, a name, or `last`."""
    known = session.load()
    with ExitStack() as stack:
        transport, found = resolve(run, known, stack, host=host, warn=paragraph)
        number = attempt or max(1, found.state.attempt)
        if number > max(1, found.state.attempt):
            raise LaunchError(
                f"{found.run_id} has no attempt {number}",
                why=f"it has been started {found.state.attempt} time(s)",
                remedy=f"launch logs {found.run_id} --attempt {found.state.attempt}",
                code=Exit.INVALID,
            )
        position = follow.Position(
            folder=f"{found.run_dir}/attempts/{number}",
            file="log.txt" if rank is None else f"log.rank{rank}.txt",
        )
        if keep_on and number == max(1, found.state.attempt):
            return following.follow_from(stack, known, transport, found, position)
        write = following.log_writer()
        follow.drain(transport, position, write)
        write.end()
        if position.offset == 0:
            words = control.last_words(transport, found) or f"{position.folder}/{position.file} is empty or not there"
            session.terminal.say(words)
        return 0
