"""Following a run from the command line: Ctrl-C leaves it going, and its end becomes an exit code."""

from __future__ import annotations

import sys
from contextlib import ExitStack, suppress

from launch.cli import session
from launch.errors import Exit, LaunchError
from launch.inventory import Inventory
from launch.runs import control, follow
from launch.runs.observe import Run
from launch.transport import Transport, connect
from launch.ui import LogWriter, paragraph
from minimind.rundir import State


def log_writer(*, to_stderr: bool = False) -> LogWriter:
    """Where log bytes go."""
    stream = sys.stderr if to_stderr else sys.stdout
    return LogWriter(stream.buffer, terminal=stream.isatty())


def follow_run(stack: ExitStack, known: Inventory, transport: Transport, run: Run, *, as_json: bool = False) -> int:
    """Follow a run; Ctrl-C leaves it going. Returns the exit code that its end deserves."""
    folder = f"{run.run_dir}/attempts/{max(1, run.state.attempt)}"
    position = follow.Position(folder=folder, file="log.txt")
    return follow_from(stack, known, transport, run, position, as_json=as_json)


def follow_from(
    stack: ExitStack,
    known: Inventory,
    transport: Transport,
    run: Run,
    position: follow.Position,
    *,
    as_json: bool = False,
) -> int:
    """As :func:`follow_run`, from a place in a file."""

    def again() -> Transport:
        return stack.enter_context(connect(known.host(run.host), known))

    write = log_writer(to_stderr=as_json)
    try:
        ended = follow.follow(again, transport, run, position, write, session.terminal)
    except KeyboardInterrupt:
        session.terminal.say(f"detached; {run.run_id} goes on")
        session.terminal.say(f"return: launch logs -f {run.run_id}\nend it: launch stop {run.run_id}")
        return int(Exit.INTERRUPTED)
    finally:
        write.end()
    if ended.state.state is State.LOST and position.offset == 0:
        with suppress(LaunchError):
            session.terminal.say(control.last_words(again(), ended) or "it left no log")
    if as_json:
        session.print_json(ended.row())
    return verdict(ended)


def verdict(run: Run) -> int:
    """Say how a run ended; returns the exit code."""
    state, step = run.state.state, run.state.last_step
    again = f"launch resume {run.run_id}"
    if state is State.FAILED:
        error = LaunchError(
            str(run.said.get("what") or f"{run.run_id} failed: {run.state.reason}"),
            why=str(run.said.get("why") or f"reason {run.state.reason}, after step {step}"),
            remedy=str(run.said.get("remedy") or f"read `launch logs {run.run_id}`, then `{again}`"),
            code=Exit.RUN_FAILED,
        )
    elif state is State.LOST:
        error = LaunchError(
            f"{run.run_id} is lost after step {step}",
            why="the host was rebooted" if run.state.reason else "it died without its last words",
            remedy=f"go on from its last checkpoint: {again}",
            code=Exit.RUN_LOST,
        )
    else:
        words = f"{run.run_id} {state} at step {step}"
        session.terminal.say(words if state is State.SUCCEEDED else f"{words}; go on: {again}")
        return int(Exit.OK if state is State.SUCCEEDED else Exit.INCOMPLETE)
    paragraph(error)
    return int(error.code)
