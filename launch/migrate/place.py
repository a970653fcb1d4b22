"""Two hosts of launch.toml may be one place: two addresses of one machine, or a root on a disk that both share."""

from __future__ import annotations

import contextlib
import secrets

from launch.argv import place as argv
from launch.errors import Exit, LaunchError
from launch.migrate.move import Move


def refuse_one(move: Move) -> None:
    """A file that is made on the target must not show on the source; it is gone when this returns.

    Where it cannot be made, nothing can be moved to, which is for the doctor to say.

    Raises:
        LaunchError: REFUSED when both roots are one folder.
    """
    name = f"seen-{secrets.token_hex(16)}"
    try:
        made = move.target.run(argv.mark(move.target_root, name)).text
        seen = made and move.source.read(argv.sees(move.source_root, name)).text
    finally:
        with contextlib.suppress(LaunchError):  # a lost connection is told by what lost it
            move.target.run(argv.unmark(move.target_root, name))
    if seen:
        raise _one(move)


def refuse_one_by_looking(move: Move) -> None:
    """The same without changing anything: two hosts that share a disk are not found out.

    Raises:
        LaunchError: REFUSED when both roots are one folder of one machine.
    """
    there = move.target.read(argv.where(move.target_root)).text.split()
    if len(there) == 2 and there == move.source.read(argv.where(move.source_root)).text.split():
        raise _one(move)


def _one(move: Move) -> LaunchError:
    source, target = move.asked.source.name, move.asked.target.name
    return LaunchError(
        f"{source} and {target} are the same place",
        why=f"{move.source_root} of {source} and {move.target_root} of {target} are one folder; nothing was moved",
        remedy=f"say another root below [hosts.{target}] in launch.toml; on {source} itself `launch resume` goes on",
        code=Exit.REFUSED,
    )
