"""Following a run from the command line: Ctrl-C leaves it going, and its end becomes an exit code."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from contextlib import ExitStack, suppress

from launch.cli import session
from launch.errors import Exit, LaunchError
from launch.inventory import Inventory
from launch.runs import control, follow
from launch.runs.observe import Run
from launch.transport import Transport, connect
from launch.ui import LogWriter, paragraph
from minimind.rundir import State

HEARD_BYTES = 1 << 16


class Log:
    """Where log bytes go; remembers the last of them where talk on stderr lands at the same place."""

    def __init__(self, *, to_stderr: bool = False) -> None:
        stream = sys.stderr if to_stderr else sys.stdout
        self._write = LogWriter(stream.buffer, terminal=stream.isatty())
        self._beside_talk = to_stderr or _same_place(1, 2)
        self._last = b""

    def __call__(self, data: bytes) -> None:
        """Write and flush."""
        self._write(data)
        if self._beside_talk:
            self._last = (self._last + data)[-HEARD_BYTES:]

    def end(self) -> None:
        """Nothing follows: write what may have been the beginning of a secret."""
        self._write.end()

    def showed(self, text: str) -> bool:
        """Whether the reader of our talk has just read this in the log."""
        return text.encode() in self._last


def _same_place(one: int, other: int) -> bool:
    with suppress(OSError):
        return os.path.sameopenfile(one, other)
    return False


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
    write: Callable[[bytes], None] | None = None,
) -> int:
    """As :func:`follow_run`, from a place in a file; ``write`` takes the log instead of stdout."""
    log = Log(to_stderr=as_json)

    def again() -> Transport:
        return stack.enter_context(connect(known.host(run.host), known))

    try:
        ended = follow.follow(again, transport, run, position, write or log, session.terminal)
    except KeyboardInterrupt:
        session.terminal.say(f"detached; {run.run_id} goes on")
        session.terminal.say(f"return: launch logs -f {run.run_id}\nend it: launch stop {run.run_id}")
        return int(Exit.INTERRUPTED)
    finally:
        log.end()
    if ended.state.state is State.LOST and position.offset == 0:
        with suppress(LaunchError):
            session.terminal.say(control.last_words(again(), ended) or "it left no log")
    if as_json:
        session.print_json(ended.row())
    return verdict(ended, log)


def verdict(run: Run, log: Log | None = None) -> int:
    """Say how a run ended, unless ``log`` just did; returns the exit code."""
    state, step = run.state.state, run.state.last_step
    again = f"launch resume {run.run_id}"
    if state is State.FAILED:
        if log and run.said.get("what") and log.showed(str(run.said["what"])):
            session.terminal.say(f"{run.run_id} failed ({run.state.reason}): why, and what to do, stands above")
            return int(Exit.RUN_FAILED)
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
