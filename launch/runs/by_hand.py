"""Runs that somebody started with ``python -m minimind``: no executor knows them, their lock and their process do."""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from launch.errors import printable
from launch.transport import Transport
from minimind.rundir import BEAT_STALE_S

LOOK = r"""
root=$1
shift
printf 'boot=%s\nnode=%s\n' "$(cat /proc/sys/kernel/random/boot_id 2>/dev/null)" "$(uname -n)"
started() {
  if [ -r /proc/self/stat ]; then
    stat=$(cat "/proc/$1/stat" 2>/dev/null) || return
    set -- ${stat##*) }
    case $1 in Z | X) ;; *) printf %s "${20}" ;; esac
  else
    ps -o lstart= -p "$1"
  fi
}
number() { sed -n 's/.*"pid": *\([0-9][0-9]*\).*/\1/p' "$1" 2>/dev/null | head -n 1; }
changed() {
  stat -c %Y -- "$@" 2>/dev/null || stat -f %m "$@" 2>/dev/null
}
for run in "$@"; do
  cd "$root/runs/$run" 2>/dev/null || continue
  printf 'run=%s\nowner=%s\n' "$run" "$(head -c 4000 lock/owner.json 2>/dev/null | tr '\n' ' ')"
  pid=$(number lock/owner.json)
  printf 'started=%s\n' "${pid:+$(started "$pid")}"
  if [ -f lock/held ] && command -v flock >/dev/null 2>&1; then
    flock -n -s lock/held true 2>/dev/null
    case $? in 0) echo lock=free ;; 1) echo lock=held ;; esac
  fi
  for file in metrics.jsonl attempts/*/*.beat attempts/*/log*.txt; do
    if [ -f "$file" ]; then changed "$file"; fi
  done | sort -n | tail -n 1 | sed 's/^/written=/'
done
printf 'now=%s\n' "$(date +%s)"
"""
"""Prints boot id and name of the machine; of each run its lock's owner, that process's start time, what holds the lock,
and when something was last written. A process is its start time; the kernel lets go of a lock with its last holder."""


@dataclass(frozen=True, kw_only=True)
class Signs:
    """What tells whether one such run lives. ``quiet_s`` is how long nothing was written; None where that is unknown.

    ``here`` is the name of the machine that was asked, ``owner`` who took the lock last.
    """

    alive: bool | None = None
    owner: Mapping[str, Any]
    quiet_s: float | None
    here: str

    @property
    def who(self) -> str:
        """Who trained it last, in words."""
        if not self.owner.get("pid"):
            return "its lock names no process"
        return printable(
            f"process {self.owner['pid']} on {self.owner.get('host') or 'a machine without a name'} began it"
        )

    @property
    def heard(self) -> str:
        """When it last wrote anything, in words."""
        return (
            "it never wrote anything" if self.quiet_s is None else f"it last wrote {max(0.0, self.quiet_s):.0f} s ago"
        )


def look(transport: Transport, root: str, runs: Iterable[str]) -> dict[str, Signs]:
    """The signs of life of these runs, in one command; those without a folder are left out."""
    told = transport.read(["sh", "-c", LOOK, "sh", root, *runs], check=False).stdout.decode(errors="replace")
    machine: dict[str, str] = {}
    found: dict[str, dict[str, str]] = {}
    about = machine
    for line in told.splitlines():
        key, _, value = line.partition("=")
        if key == "run":
            about = found.setdefault(value, {})
        (machine if key == "now" else about)[key] = value.strip()
    now = _seconds(machine.get("now")) or time.time()
    return {run: _signs(said, machine, now) for run, said in found.items()}


def _signs(said: Mapping[str, str], machine: Mapping[str, str], now: float) -> Signs:
    try:
        owner = json.loads(said.get("owner", ""))
    except ValueError:
        owner = {}
    owner = owner if isinstance(owner, dict) else {}
    written, here = _seconds(said.get("written")), machine.get("node", "")
    quiet_s = None if written is None else now - written
    return Signs(alive=_alive(said, owner, machine, quiet_s), owner=owner, quiet_s=quiet_s, here=here)


def _alive(
    said: Mapping[str, str], owner: Mapping[str, Any], machine: Mapping[str, str], quiet_s: float | None
) -> bool | None:
    """A process can be missed: in a container, or on another machine that shares the disk. A held lock cannot."""
    if said.get("lock") == "held":
        return True
    if not owner.get("pid"):
        return None
    boot_id = machine.get("boot") or None
    same_boot = owner.get("boot_id") == boot_id
    same_name = owner.get("host") == machine.get("node")
    if same_boot and said.get("started") and said["started"] == str(owner.get("start_time")).strip():
        return True
    if same_boot and boot_id and said.get("lock") == "free":
        return False
    rebooted = not same_boot and quiet_s is not None and quiet_s > BEAT_STALE_S
    return False if same_name and (same_boot or rebooted) else None


def _seconds(told: str | None) -> float | None:
    return float(told) if told and told.isdecimal() and len(told) < 13 else None
