"""Whether the container's run is alive, for the engine's health check: ``python -m minimind.health``. Standard library.

Healthy is a supervisor whose heartbeat is fresh, or no supervisor at all: then the container does something else.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

from minimind.rundir import BEAT_INTERVAL_S

MISSED_BEATS = 6


def supervised(proc: Path = Path("/proc")) -> Path | None:
    """The run directory of the supervisor that runs here, from its command line."""
    for cmdline in proc.glob("[0-9]*/cmdline"):
        try:
            words = cmdline.read_bytes().decode(errors="surrogateescape").split("\0")
        except OSError:  # it ended while we looked
            continue
        if "minimind.supervise" in words and "--run_dir" in words[:-1]:
            return Path(words[words.index("--run_dir") + 1])
    return None


def late_s(run_dir: Path, *, now: float) -> float:
    """Seconds since the last heartbeat; infinite where there was none."""
    try:
        return now - (run_dir / "beat.json").stat().st_mtime
    except OSError:
        return float("inf")


def main() -> int:
    """Exit 0 when healthy, 1 when not."""
    run_dir = supervised()
    late = 0.0 if run_dir is None else late_s(run_dir, now=time.time())
    print("no supervisor" if run_dir is None else f"last heartbeat {late:.0f} s ago")
    return int(late > MISSED_BEATS * BEAT_INTERVAL_S)


if __name__ == "__main__":
    sys.exit(main())
