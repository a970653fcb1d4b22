"""How much memory this machine has for a training: its GPUs', or what its control group leaves of the main memory."""

from __future__ import annotations

import contextlib
import subprocess
from pathlib import Path

CGROUP = Path("/sys/fs/cgroup")
MEMINFO = Path("/proc/meminfo")
MIB = 1 << 20


def available_bytes(device: str) -> tuple[str, int | None]:
    """What memory counts for a training on ``device`` (auto, cpu, cuda), and how much of it can be had.

    Returns:
        ``("gpu", bytes of the smallest GPU)``, or ``("main", bytes free for all ranks together)``; None where the
        machine does not say.
    """
    gpus = [] if device == "cpu" else _gpus()
    return ("gpu", min(gpus)) if gpus else ("main", _main())


def _gpus() -> list[int]:
    asked = ["nvidia-smi", "--query-gpu=memory.total", "--format=csv,noheader,nounits"]
    try:
        answer = subprocess.run(asked, capture_output=True, text=True, timeout=10, check=True).stdout
        return [int(line) * MIB for line in answer.split()]
    except (OSError, ValueError, subprocess.SubprocessError):
        return []


def _main() -> int | None:
    found = []
    with contextlib.suppress(OSError, ValueError):
        told = dict(line.split(":", 1) for line in MEMINFO.read_text().splitlines() if ":" in line)
        found += [int(told[name].split()[0]) * 1024 for name in ("MemAvailable",) if name in told]
    for limit, used in (
        ("memory.max", "memory.current"),
        ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes"),
    ):
        with contextlib.suppress(OSError, ValueError):  # "max": no limit
            found.append(max(0, int((CGROUP / limit).read_text()) - int((CGROUP / used).read_text())))
    return min(found, default=None)
