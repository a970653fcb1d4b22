"""`launch logs`: a run's log, byte for byte, or line by line as JSON."""

from __future__ import annotations

import sys
from contextlib import ExitStack

import click

from launch.cli import following, session
from launch.errors import Exit, LaunchError
from launch.runs import control, follow
from launch.runs.find import resolve
from launch.runs.observe import Run
from launch.transport import Transport
from launch.ui import JsonLines, paragraph


@click.command()
@click.argument("run")
@click.option("-f", "--follow", "keep_on", is_flag=True, help="Go on until the run has ended.")
@click.option("--rank", type=click.IntRange(0), help="The output of one rank alone.")
@click.option("--attempt", type=click.IntRange(1), help="An earlier attempt.  [default: the last]")
@click.option("--host", help="Look on this host only.")
@session.json_option
def logs(run: str, keep_on: bool, rank: int | None, attempt: int | None, host: str | None, as_json: bool) -> int:
    """Print the log of RUN: an id, the beginning of one, a name, or `last`.

    With --json each line becomes an object: run_id, attempt, rank (null: what rank 0 and torchrun print), line.
    The exit code is 10 while there is no log yet.
    """
    known = session.load()
    with ExitStack() as stack:
        transport, found = resolve(run, known, stack, host=host, warn=paragraph)
        last = max(1, found.state.attempt)
        number = attempt or last
        _check(found, rank, number, last)
        position = follow.Position(
            folder=f"{found.run_dir}/attempts/{number}",
            file="log.txt" if rank is None else f"log.rank{rank}.txt",
        )
        lines = JsonLines(sys.stdout.buffer, run_id=found.run_id, attempt=number, rank=rank) if as_json else None
        try:
            if keep_on and number == last:
                return following.follow_from(stack, known, transport, found, position, write=lines)
            log = following.Log()
            follow.drain(transport, position, lines or log)
            log.end()
        finally:
            if lines:
                lines.close()
        return _nothing(transport, found, number == last) if position.offset == 0 else 0


def _check(found: Run, rank: int | None, number: int, last: int) -> None:
    nproc = found.row()["nproc"]
    if number > last:
        raise LaunchError(
            f"{found.run_id} has no attempt {number}",
            why=f"it has been started {found.state.attempt} time(s)",
            remedy=f"launch logs {found.run_id} --attempt {found.state.attempt}",
            code=Exit.INVALID,
        )
    if rank is not None and isinstance(nproc, int) and number == last and rank >= nproc:
        raise LaunchError(
            f"{found.run_id} has no rank {rank}",
            why=f"it has {nproc}, counted from 0",
            remedy=f"launch logs {found.run_id} --rank {nproc - 1}",
            code=Exit.INVALID,
        )


def _nothing(transport: Transport, found: Run, is_last: bool) -> int:
    """Say why there is no log; returns the exit code."""
    words = control.last_words(transport, found) if is_last else ""
    if words:
        session.terminal.say(words)
    if is_last and not found.state.state.ended:
        session.terminal.say(f"{found.run_id} has no log yet: it is {found.state.state}")
        return int(Exit.INCOMPLETE)
    if not words:
        session.terminal.say(f"{found.run_id} left no log there")
    return following.verdict(found) if is_last else int(Exit.OK)
