"""A move that has ended: its report is shown again, and nothing is claimed that was not looked at."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from launch.errors import Exit, LaunchError
from launch.migrate.move import Move
from launch.sync.listing import list_files

OF_A_RUN = re.compile(r"runs/[^/]+/(?:spec\.json|metrics\.jsonl)")
"""There since a run was started, and longer with every step of it."""


def report_again(move: Move) -> Mapping[str, Any]:
    """The report as it was, unless the source has more by now.

    The names and lengths there are compared with those that were brought home. The source may be gone: that is said.

    Raises:
        LaunchError: REFUSED when the source has runs or weights that the move does not know.
    """
    report = move.journal.facts("report")
    source, target, say = move.asked.source.name, move.asked.target.name, move.voice.say
    at = report.get("ended_at")
    ended = f"this move ended at {at}" if at else f"this move, begun at {move.journal.began_at}, has ended"
    say(f"{ended}: nothing was moved, and nothing was looked at on {target} now; --again makes a new move")
    if move.source_is_home:  # copies of all hosts come there
        return report
    try:
        more = sorted(set(_unknown(move)))
    except LaunchError as error:
        say(f"whether {source} has made more since cannot be told: {error.what}: {error.why}")
        return report
    if more:
        raise LaunchError(
            f"{source} has what this move does not know: {', '.join(more[:5])}{' and more' if more[5:] else ''}",
            why=f"{ended}; that is neither on {target} nor at home on account of it",
            remedy="say the same with --again: a new move, and what has arrived is not sent twice",
            code=Exit.REFUSED,
        )
    say(f"{source} has no runs or weights that the move did not bring home, by their names and lengths")
    return report


def _unknown(move: Move) -> Iterator[str]:
    """Runs by their names, weights in out/ by their paths."""
    known = {file["path"]: file["bytes"] for file in move.journal.facts("save")["files"]}
    for file in list_files(move.source, move.source_root, ["out", "runs"]).files:
        told = file.weights or file.checkpoint or OF_A_RUN.fullmatch(file.path)
        if told and known.get(file.path) != file.length_bytes:
            yield file.path if file.path.startswith("out/") else file.path.split("/")[1]
