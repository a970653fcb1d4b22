"""A home with data and a host that trains with this very interpreter, and ways to watch what launch does there."""

import contextlib
import json
import os
import pathlib
import signal
import subprocess
import sys
import time

from tests import conftest
from tests.support import corpus

TRAIN = ("--hidden_size", "64", "--num_hidden_layers", "2", "--log_interval", "1")
LONG = (*TRAIN, "--epochs", "1000000", "--save_interval", "1000000")
AS_IT_IS = f'executor = "venv"\npython = "{sys.executable}"\n'


def make_home(folder: pathlib.Path, server, *, extra: str = AS_IT_IS, samples: int = 24) -> conftest.SshHome:
    """launch.toml with the host gpu8, a small data set for every stage, and a tokenizer, all on the laptop's side."""
    home = conftest.make_ssh_home(folder, server, extra=extra)
    corpus.make(home.home, samples=samples)
    return home


def wait_for(condition, *, timeout_s: float = 120):
    """Poll until the condition gives something true, and return that."""
    deadline = time.monotonic() + timeout_s
    while not (found := condition()):
        assert time.monotonic() < deadline, f"waited {timeout_s} s for {condition}"
        time.sleep(0.05)
    return found


def start(home, *args: str, cwd: pathlib.Path | None = None, **options) -> subprocess.Popen:
    """Run launch in the background, in a process group of its own."""
    return subprocess.Popen(
        [sys.executable, "-m", "launch", *args],
        cwd=cwd or home.home,
        env=home.environ,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
        **options,
    )


def rows(home, *args: str) -> list[dict]:
    """What ``launch ps --json`` says."""
    return json.loads(home.launch("ps", "--all", "--json", *args, check=True).stdout)


def run_dirs(home) -> list[pathlib.Path]:
    """The run directories on the host, oldest first."""
    runs = home.root / "runs"
    return sorted(runs.iterdir()) if runs.is_dir() else []


def log_of(run_dir: pathlib.Path, attempt: int = 1) -> pathlib.Path:
    return run_dir / "attempts" / str(attempt) / "log.txt"


def steps_of(run_dir: pathlib.Path) -> int:
    with contextlib.suppress(FileNotFoundError):
        return (run_dir / "metrics.jsonl").read_bytes().count(b"\n")
    return 0


def tree(*folders: pathlib.Path) -> dict[str, tuple]:
    """Every name below the folders with its kind, size and time of change."""
    found = {}
    for folder in folders:
        for path in [folder, *folder.rglob("*")] if folder.exists() else []:
            stat = path.lstat()
            found[str(path)] = (stat.st_mode, stat.st_size, stat.st_mtime_ns)
    return found


def end_all(home) -> None:
    """Leave nothing running: kill every supervisor of this home's host, and what is below it."""
    for run_dir in run_dirs(home):
        with contextlib.suppress(FileNotFoundError, ValueError, KeyError, ProcessLookupError):
            pid = json.loads((run_dir / "handle.json").read_bytes())["pid"]
            if str(run_dir) in pathlib.Path(f"/proc/{pid}/cmdline").read_text():
                os.kill(pid, signal.SIGKILL)


def local_home(folder: pathlib.Path) -> conftest.SshHome:
    """A home without any launch.toml: there is the host local, and its root is local/ below."""
    home = corpus.make(folder / "laptop home")
    environ = {key: value for key, value in os.environ.items() if key != "LAUNCH_INVENTORY"}
    return conftest.SshHome(home, home / "local", None, {**environ, "PYTHONPATH": str(conftest.ROOT)})
