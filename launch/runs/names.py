"""Run names as locks on a host: decision 0001's ``ln`` scheme. The claim with the highest number counts."""

from __future__ import annotations

import contextlib
import json
import re
from dataclasses import dataclass
from typing import Any

from launch.errors import Exit, LaunchError
from launch.runs.observe import observe
from launch.transport import Transport
from minimind.rundir import State

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")
UNSTARTED_HOLDS_S = 120.0

READ = r"""
date +%s
cd "$1/names" 2>/dev/null || exit 0
highest=0
for file in "$2".*; do
  number=${file##*.}
  case $number in "" | *[!0-9]*) continue ;; esac
  if [ "$file" = "$2.$number" ] && [ "$number" -gt "$highest" ]; then highest=$number; fi
done
if [ "$highest" -gt 0 ]; then echo "$highest" && cat "$2.$highest"; fi
"""

CLAIM = r"""
set -e
umask 077
mkdir -p "$1/names"
made=$(mktemp "$1/names/.tmp-XXXXXX")
trap 'rm -f "$made"' EXIT
{ cat && printf ', "time": %s}\n' "$(date +%s)"; } >"$made"
if ln "$made" "$1/names/$2" 2>/dev/null; then echo claimed; else echo taken; fi
"""
"""``link()`` fails when the name exists, whoever else tries at the same moment. The time is the host's."""


@dataclass(frozen=True, kw_only=True)
class Claim:
    """Who holds a name: the run, and the launcher that claimed it ``age_s`` ago."""

    number: int
    run_id: str | None
    owner: str
    pid: int | None
    age_s: float


def current(transport: Transport, root: str, name: str) -> Claim | None:
    """The claim that counts, on the host's clock; None when nobody ever claimed the name."""
    lines = transport.read(["sh", "-c", READ, "sh", root, name]).text.splitlines()
    if len(lines) < 2:
        return None
    told: dict[str, Any] = {}
    with contextlib.suppress(ValueError):  # a claim that cannot be read still has its number, and holds nothing
        told = json.loads("\n".join(lines[2:]))
    return Claim(
        number=int(lines[1]),
        run_id=told.get("run_id"),
        owner=str(told.get("owner", "somebody")),
        pid=told.get("pid"),
        age_s=float(lines[0]) - float(told.get("time") or 0),
    )


def claim(transport: Transport, root: str, name: str, run_id: str, *, owner: str, pid: int) -> int:
    """Let the run hold the name; returns the claim's number.

    Raises:
        LaunchError: REFUSED, naming the holder.
    """
    number = 0
    for _ in range(16):
        held = current(transport, root, name)
        if held and held.run_id == run_id and number:
            return held.number
        if held and held.run_id not in (None, run_id) and _holds(transport, root, held):
            raise _refusal(transport, name, held)
        number = (held.number if held else 0) + 1
        content = json.dumps({"run_id": run_id, "owner": owner, "pid": pid}, ensure_ascii=False)[:-1]
        result = transport.run(["sh", "-c", CLAIM, "sh", root, f"{name}.{number}"], stdin=content.encode())
        if result.text != "taken":
            return number
    raise LaunchError(
        f"the name {name!r} could not be claimed on {transport.host.name}",
        why="others claimed it again and again in the meantime",
        remedy="try again, or take another --name",
        code=Exit.REFUSED,
    )


def release(transport: Transport, root: str, name: str, *, after: int, owner: str, pid: int) -> None:
    """Let go of a name whose run could not be started, by a later claim that holds nothing."""
    content = json.dumps({"run_id": None, "owner": owner, "pid": pid}, ensure_ascii=False)[:-1]
    transport.run(["sh", "-c", CLAIM, "sh", root, f"{name}.{after + 1}"], stdin=content.encode(), check=False)


def _holds(transport: Transport, root: str, held: Claim) -> bool:
    found = observe(transport, root=root, run_id=held.run_id or "")
    state = found[0].state.state if found else State.PREPARED
    if state is State.PREPARED:  # its launcher may be between the claim and the start, or have died there
        return held.age_s < UNSTARTED_HOLDS_S
    return not state.ended


def _refusal(transport: Transport, name: str, held: Claim) -> LaunchError:
    return LaunchError(
        f"the name {name!r} is held on {transport.host.name} by {held.run_id}",
        why=f"{held.owner} (process {held.pid}) started it {held.age_s:.0f} s ago and it has not ended",
        remedy=f"follow it with `launch logs -f {held.run_id}`, stop it, or take another --name",
        code=Exit.REFUSED,
    )
