"""Processes on the host: who they are, what the kernel does to them, leaving them running. Standard library only."""

from __future__ import annotations

import contextlib
import ctypes
import os
import resource
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import NoReturn

PR_SET_PDEATHSIG = 1
PR_SET_CHILD_SUBREAPER = 36
PR_SET_DUMPABLE = 4


def cores(groups: Path = Path("/sys/fs/cgroup")) -> int:
    """Cores to compute with: those this process is bound to, and no more than a container's quota pays for.

    More threads than a quota has cores are stopped together for the rest of each period once it is used up.

    Args:
        groups: where the kernel shows the process's own control group (version 2, or 1).
    """
    bound = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    for names in (("cpu.max",), ("cpu/cpu.cfs_quota_us", "cpu/cpu.cfs_period_us")):
        with contextlib.suppress(OSError, ValueError, ZeroDivisionError):  # "max" or -1: no quota
            quota, period = " ".join((groups / name).read_text() for name in names).split()
            if int(quota) > 0:
                return max(1, min(bound, int(quota) // int(period)))
    return bound


def boot_id() -> str | None:
    """Names this boot of the machine; None where the kernel does not say (macOS)."""
    with contextlib.suppress(OSError):
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    return None


def start_time(pid: int) -> str:
    """A process's start time as text that only this process has: /proc's tick count, else what ``ps`` prints."""
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
    said = subprocess.run(["ps", "-o", "lstart=", "-p", str(pid)], capture_output=True, text=True, check=False)
    return said.stdout.strip()


def kernel_state(pid: int) -> str:
    """The kernel's letter for a process (R, S, D, T, Z, …); empty when there is none."""
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    if Path("/proc/self/stat").exists():
        return ""
    said = subprocess.run(["ps", "-o", "state=", "-p", str(pid)], capture_output=True, text=True, check=False)
    return said.stdout.strip()[:1]


def descendants(pid: int) -> list[int]:
    """Every process below this one, as far as the kernel lists them (Linux)."""
    children: dict[int, list[int]] = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError, IndexError, ValueError):
            children.setdefault(int(stat.read_text().rpartition(")")[2].split()[1]), []).append(int(stat.parent.name))
    found, open_ends = [], [pid]
    while open_ends:
        below = children.get(open_ends.pop(), [])
        found += below
        open_ends += below
    return found


def kill_all(pids: Iterable[int]) -> None:
    """SIGKILL each of them; one that is gone is no error."""
    for pid in pids:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.kill(pid, signal.SIGKILL)


def oom_kills() -> int:
    """How often the kernel killed something for memory in this cgroup (0 where it does not say)."""
    with contextlib.suppress(OSError):
        for line in Path("/sys/fs/cgroup/memory.events").read_text().splitlines():
            key, _, value = line.partition(" ")
            if key == "oom_kill":
                return int(value)
    return 0


def leave_no_core() -> None:
    """Let a crash of this process write no memory to disk. Children inherit the limit, which exec keeps."""
    _, hard = resource.getrlimit(resource.RLIMIT_CORE)
    resource.setrlimit(resource.RLIMIT_CORE, (0, hard))
    prctl(PR_SET_DUMPABLE, 0)  # a core that is piped to a program ignores the limit


def prctl(option: int, value: int) -> None:
    """One Linux process control; does nothing elsewhere."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(option, value, 0, 0, 0)


def detach(run: Callable[[Callable[[bytes], None]], int]) -> int:
    """Run ``run`` in a session of its own and return as soon as it calls its argument with what is to be printed.

    Returns:
        0 then; the child's own exit code when it ended without that call (what it printed goes to stderr).
    """
    reader, writer = os.pipe()
    if pid := os.fork():
        os.close(writer)
        with open(reader, "rb") as pipe:
            verdict, _, text = pipe.read().partition(b"\0")
        os.waitpid(pid, 0)
        (sys.stdout if verdict == b"0" else sys.stderr).buffer.write(text)
        return int(verdict or 1)
    os.setsid()
    if os.fork():
        os._exit(0)
    null, errors = os.open(os.devnull, os.O_RDWR), tempfile.TemporaryFile()  # noqa: SIM115
    for fd, to in ((0, null), (1, null), (2, errors.fileno())):
        os.dup2(to, fd)

    def announce(text: bytes) -> None:
        os.write(writer, b"0\0" + text)
        os.close(writer)
        os.dup2(null, 2)

    code = 1
    try:
        code = run(announce)
    finally:
        with contextlib.suppress(OSError):
            sys.stderr.flush()
            errors.seek(0)
            os.write(writer, f"{code}\0".encode() + errors.read())
        os._exit(code)


def leave(code: int) -> NoReturn:
    """End the process; a rank ends without the interpreter's finalization.

    A gloo thread that takes the GIL while the interpreter shuts down is unwound by pthread_exit, and C++ answers with
    std::terminate: one clean run in about forty ended in SIGABRT on a busy machine.
    """
    if "RANK" not in os.environ:
        sys.exit(code)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
