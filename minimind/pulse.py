"""How far each rank has come, in one small file a rank, and who is behind when nothing moves. Standard library only.

A rank that stops leaves the others waiting inside a collective, which says nothing for as long as the process group
allows. So every rank writes where it is before it does anything that can last; whoever watches (the supervisor, or each
rank's own thread when there is none) takes the rank that is furthest behind and asks how long that has not changed.
"""

from __future__ import annotations

import contextlib
import enum
import json
import os
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from minimind.process import kernel_state, start_time
from minimind.rundir import Reason, RunError

WIDTH_BYTES = 240
DEAD_GRACE_S = 5.0
"""How long the others may take to leave by themselves after a rank has died."""
LONGEST_LOOK_S = 5.0
"""A watcher that was itself stopped, or whose machine slept, must not count that time against the ranks."""


class Phase(enum.IntEnum):
    """Where in a step a rank is; of two ranks in one step, the lower one is behind."""

    JOIN = 0
    PREPARE = 1
    READ = 2
    COMPUTE = 3
    SUM = 4
    APPLY = 5
    SAVE = 6
    LEFT = 9


ALLOWANCE = {Phase.JOIN: 6.0, Phase.PREPARE: 36.0, Phase.SAVE: 6.0, Phase.LEFT: 0.0}
"""Multiples of the time one phase of a step may take; 0 is for ever."""
FIRST_STEP = 6.0
"""The same for the first step, which may compile."""
WORDS = {
    Phase.JOIN: "joining the others",
    Phase.PREPARE: "preparing data and weights",
    Phase.READ: "reading its samples",
    Phase.COMPUTE: "computing",
    Phase.SUM: "waiting for the others",
    Phase.APPLY: "applying the update",
    Phase.SAVE: "saving",
}
STUCK = {
    "T": "the process is stopped (SIGSTOP, or a debugger)",
    "t": "the process is held by a debugger",
    "D": "the process waits inside the kernel for a disk or a device",
    "R": "the process computes without end",
}
"""What the kernel says about a process, the surest sign first."""


class Pulse:
    """One rank's file, overwritten in place; the smallest write there is, and never an error."""

    def __init__(self, path: Path, *, rank: int, hang_timeout_s: float) -> None:
        self.rank, self.hang_timeout_s = rank, hang_timeout_s
        self.step, self.first_step = 0, 0
        self.identity = {"rank": rank, "pid": os.getpid(), "start_time": start_time(os.getpid())}
        self.count = 0
        self.fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)

    def at(self, phase: Phase, *, step: int | None = None) -> None:
        """Say where this rank is now; ``step`` is the one being computed, 0 before the first."""
        if step is not None:
            self.first_step = self.first_step or step
            self.step = step
        slack = FIRST_STEP if self.step == self.first_step else 1.0
        self.count += 1
        beat = {
            **self.identity,
            "step": self.step,
            "phase": int(phase),
            "allowed_s": self.hang_timeout_s * ALLOWANCE.get(phase, slack),
            "count": self.count,
        }
        with contextlib.suppress(OSError):  # a full disk is told where something is lost by it
            os.pwrite(self.fd, json.dumps(beat).encode().ljust(WIDTH_BYTES) + b"\n", 0)

    def close(self) -> None:
        """Leave: whoever dies from now on has done its work."""
        self.at(Phase.LEFT)
        os.close(self.fd)


@dataclass
class _Seen:
    """What is known about one rank, and for how long it has been so."""

    beat: dict[str, Any] = field(default_factory=dict)
    unchanged_s: float = 0.0
    dead_s: float = 0.0

    @property
    def place(self) -> tuple[int, int]:
        """Order of progress; a rank that never wrote is behind all."""
        return (int(self.beat.get("step", -1)), int(self.beat.get("phase", -1)))

    @property
    def left(self) -> bool:
        """Whether it has done its work."""
        return self.beat.get("phase") == Phase.LEFT

    @property
    def pid(self) -> int:
        """Its process; 0 when it never wrote."""
        return int(self.beat.get("pid", 0))

    def alive(self) -> bool:
        """Whether that very process still runs."""
        return (
            not self.left
            and kernel_state(self.pid) not in ("", "Z", "X")
            and start_time(self.pid) == self.beat["start_time"]
        )


class Watch:
    """Looks at all ranks' files from time to time."""

    def __init__(self, folder: Path, nproc: int) -> None:
        self.folder = folder
        self.ranks = {rank: _Seen() for rank in range(nproc)}

    def look(self, elapsed_s: float) -> RunError | None:
        """What is wrong, if anything: HUNG, or SIGNAL when a rank died and the others did not leave.

        Args:
            elapsed_s: time since the last look.
        """
        elapsed_s = min(elapsed_s, LONGEST_LOOK_S)
        for rank, seen in self.ranks.items():
            beat = _read(self.folder / f"rank{rank}.beat")
            seen.unchanged_s = 0.0 if beat and beat != seen.beat else seen.unchanged_s + elapsed_s
            seen.beat = beat or seen.beat
            seen.dead_s = seen.dead_s + elapsed_s if seen.pid and not seen.left and not seen.alive() else 0.0
        dead = self.dead(for_s=DEAD_GRACE_S)
        return died(dead, self.ranks[dead[0]].pid) if dead else self._hung()

    def dead(self, *, for_s: float) -> list[int]:
        """Ranks that ended before their work was done, at least so long ago."""
        return [rank for rank, seen in self.ranks.items() if seen.dead_s > for_s]

    def pids(self, ranks: Iterable[int] | None = None) -> list[int]:
        """Live processes of these ranks, or of all."""
        wanted = self.ranks if ranks is None else {rank: self.ranks[rank] for rank in ranks}
        return [seen.pid for seen in wanted.values() if seen.pid and seen.alive()]

    def _hung(self) -> RunError | None:
        known = [seen for seen in self.ranks.values() if seen.beat]
        if not known:
            return None
        last = min(seen.place for seen in self.ranks.values())
        behind = {rank: seen for rank, seen in self.ranks.items() if seen.place == last}
        joining_s = max(float(seen.beat["allowed_s"]) for seen in known)
        overdue = all(0 < float(seen.beat.get("allowed_s", joining_s)) < seen.unchanged_s for seen in behind.values())
        return self._told(behind) if overdue else None

    def _told(self, behind: dict[int, _Seen]) -> RunError:
        states = {rank: kernel_state(seen.pid) for rank, seen in behind.items()}
        surest = next((sign for sign in STUCK if sign in states.values()), None)
        culprits = [rank for rank in behind if surest is None or states[rank] == surest]
        first = behind[culprits[0]]
        names = " or ".join(f"rank {rank} (process {behind[rank].pid or 'unknown'})" for rank in culprits)
        if first.beat:
            where = f"in step {first.beat['step']}, {WORDS[Phase(first.beat['phase'])]}"
        else:
            where = "before it joined the others"
        others = "; the other ranks wait for it" if len(self.ranks) > 1 else ""
        error = RunError(
            f"{names} hung: no progress for {first.unchanged_s:.0f} s, {where}",
            why=STUCK.get(surest or "", "the process sleeps, and nothing it waits for has come") + others,
            remedy=f"read {self.folder / f'log.rank{culprits[0]}.txt'} and the kernel log, then `launch resume`; "
            "where a step or a save rightly takes that long, give a larger --hang_timeout",
            reason=Reason.HUNG,
        )
        error.ranks = tuple(culprits)
        return error


def died(ranks: list[int], pid: int) -> RunError:
    """The paragraph of the survivors."""
    error = RunError(
        f"rank {ranks[0]} (process {pid}) died, and the others cannot go on without it",
        why="something ended it from outside, or it crashed; it left no word",
        remedy="look at its log and the kernel log (`dmesg`), then start the same command again: it resumes",
        reason=Reason.SIGNAL,
    )
    error.ranks = tuple(ranks)
    return error


def _read(path: Path) -> dict[str, Any]:
    try:
        loaded = json.loads(path.read_bytes())
        return loaded if isinstance(loaded, dict) and "allowed_s" in loaded else {}
    except (OSError, ValueError):
        return {}


def last_metrics_step(path: Path, *, tail_bytes: int = 4096) -> int:
    """The step on the last complete line of metrics.jsonl; 0 when there is none."""
    try:
        with open(path, "rb") as file:
            file.seek(max(0, path.stat().st_size - tail_bytes))
            lines = file.read().split(b"\n")[:-1]
        return int(json.loads(lines[-1])["step"])
    except (OSError, ValueError, LookupError, TypeError):
        return 0
