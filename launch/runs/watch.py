"""Bringing finished checkpoints home while a run goes on, and everything when it has ended."""

from __future__ import annotations

import time
from collections.abc import Callable

from launch.errors import Exit, LaunchError
from launch.inventory import Inventory
from launch.runs.observe import observe
from launch.sync import Report, Rounds, sync_out
from launch.transport import Transport
from launch.voice import Voice

INTERVAL_S = 10.0
GIVE_UP_S = 1800.0


def watch(
    connect: Callable[[], Transport],
    transport: Transport,
    inventory: Inventory,
    rounds: Rounds,
    voice: Voice,
    *,
    now_utc: Callable[[], str],
    interval_s: float = INTERVAL_S,
    give_up_s: float = GIVE_UP_S,
    without_weights: bool = False,
) -> Report:
    """Copy what is finished, again and again, until the run (or every run of the host) has ended; then sync all of it.

    A link that drops is made again; a file that moves is left for the next round.

    Raises:
        LaunchError: as sync_out does at the end; UNREACHABLE when the host stayed away for ``give_up_s``.
    """
    away_since: float | None = None
    while True:
        try:
            if away_since is not None:
                transport = connect()
                voice.say(f"{transport.host.name} is back")
                away_since = None
            if not _going(transport, rounds.run_id):
                return sync_out(
                    transport,
                    inventory,
                    folder=rounds.folder,
                    run_id=rounds.run_id,
                    voice=voice,
                    now_utc=now_utc(),
                    checkpoints_count=True,
                    without_weights=without_weights,
                )
            brought = rounds.bring(transport, now_utc=now_utc())
            if brought:
                voice.say(f"{len(brought)} finished files are at home, verified")
        except LaunchError as error:
            if error.code is Exit.NOT_VERIFIED and away_since is None and _still(transport, rounds.run_id):
                voice.say(f"{error.what}: left for the next round")
            elif error.code not in (Exit.UNREACHABLE, Exit.INCOMPLETE):
                raise
            else:
                now = time.monotonic()
                if away_since is None:
                    voice.say(f"{error.what}; trying again for {give_up_s:.0f} s, the run goes on meanwhile")
                    away_since = now
                if now - away_since > give_up_s:
                    raise
                transport.close()
        time.sleep(interval_s)


def _going(transport: Transport, run_id: str | None) -> bool:
    return any(not run.state.state.ended for run in observe(transport, run_id=run_id or ""))


def _still(transport: Transport, run_id: str | None) -> bool:
    try:
        return _going(transport, run_id)
    except LaunchError:
        return True
