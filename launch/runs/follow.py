"""Following a run's log: every byte once, in order, across dropped links and the end of the run."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

from launch.errors import Exit, LaunchError
from launch.runs.observe import Run, observe
from launch.transport import Transport
from launch.voice import Voice

CHUNK_BYTES = 1 << 20
GIVE_UP_S = 300.0
RETRY_S = 2.0

READ = r"""
if [ -f "$1/exit.json" ]; then echo 1; else echo 0; fi
tail -c "+$3" "$1/$2" 2>/dev/null | head -c "$4"
"""
"""Whether the attempt has ended is asked first: then what is read after it is all there will ever be."""

WATCH = r"""
dir=$1 file=$1/$2 ticks=0
tick() {
  ticks=$((ticks + 1))
  [ "$ticks" -le 40 ] && [ ! -f "$dir/exit.json" ] && { sleep 0.25 2>/dev/null || sleep 1; }
}
while [ ! -f "$file" ]; do tick || exit 0; done
tail -c "+$3" -f "$file" &
while tick; do :; done
kill "$!" 2>/dev/null
exit 0
"""
"""Passes on what is appended, for ten seconds or until the attempt ends: nothing stays behind when we are gone."""


@dataclass
class Position:
    """Where a reader stands: the attempt's folder on the host, the file in it, and the bytes already passed on."""

    folder: str
    file: str
    offset: int = 0


def read(transport: Transport, position: Position, write: Callable[[bytes], None]) -> tuple[int, bool]:
    """Pass on what is new, at most ``CHUNK_BYTES``; returns how much that was, and whether it was the last.

    The offset moves only after ``write`` took the bytes, so that a link cut in the middle costs nothing.
    """
    argv = ["sh", "-c", READ, "sh", position.folder, position.file, str(position.offset + 1), str(CHUNK_BYTES)]
    ended, _, data = transport.read(argv, timeout_s=60).stdout.partition(b"\n")
    if data:
        write(data)
        position.offset += len(data)
    return len(data), ended == b"1" and len(data) < CHUNK_BYTES


def drain(transport: Transport, position: Position, write: Callable[[bytes], None]) -> None:
    """Pass on everything there is now."""
    while read(transport, position, write)[0] == CHUNK_BYTES:
        pass


def follow(
    connect: Callable[[], Transport],
    transport: Transport,
    run: Run,
    position: Position,
    write: Callable[[bytes], None],
    voice: Voice,
    *,
    give_up_s: float = GIVE_UP_S,
) -> Run:
    """Pass on the log until the run has ended, reconnecting as often as the link drops; returns the run as it ended.

    Raises:
        LaunchError: UNREACHABLE when the host stayed away for ``give_up_s``; the run itself goes on.
    """
    away_since: float | None = None
    while True:
        try:
            if away_since is not None:
                transport = connect()
                voice.say(f"{run.host} is back, going on at byte {position.offset}")
                away_since = None
            return _until_end(transport, run, position, write)
        except LaunchError as error:
            if error.code is not Exit.UNREACHABLE:
                raise
            now = time.monotonic()
            if away_since is None:
                voice.say(f"{error.what}; trying again for {give_up_s:.0f} s, the run goes on meanwhile")
                away_since = now
            if now - away_since > give_up_s:
                raise LaunchError(
                    f"{run.host} has been out of reach for {give_up_s:.0f} s",
                    why=error.why,
                    remedy=f"the run goes on; return to it with `launch logs -f {run.run_id}`",
                    code=Exit.UNREACHABLE,
                ) from error
            transport.close()
            time.sleep(RETRY_S)


def watch(transport: Transport, position: Position, write: Callable[[bytes], None]) -> None:
    """Pass on what comes, as it comes; returns after some seconds, or soon after the attempt has ended."""
    argv = ["sh", "-c", WATCH, "sh", position.folder, position.file, str(position.offset + 1)]
    for data in transport.stream(argv):
        write(data)
        position.offset += len(data)


def _until_end(transport: Transport, run: Run, position: Position, write: Callable[[bytes], None]) -> Run:
    attempt = int(position.folder.rpartition("/")[2])
    while not run.state.state.ended:
        watch(transport, position, write)
        while (got := read(transport, position, write)) == (CHUNK_BYTES, False):
            pass
        if not got[1]:
            found = observe(transport, root=run.root, run_id=run.run_id)
            if found and not found[0].state.state.ended and found[0].state.attempt == attempt:
                continue
        break
    drain(transport, position, write)
    return next(iter(observe(transport, root=run.root, run_id=run.run_id)), run)
