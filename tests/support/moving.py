"""Two hosts, a stopped run on the first, and a launcher that dies at an exact place.

``python -m tests.support.moving WHERE launch-arguments…`` runs the real command line and kills itself (SIGKILL) at
``call:N`` (the Nth remote command has just been sent), ``before:STEP`` (its work is done, and not written down) or
``after:STEP``. ``count:FILE`` writes to a file how many remote commands there were.
"""

import contextlib
import hashlib
import json
import os
import pathlib
import signal
import subprocess
import sys
import time

from tests import conftest
from tests.support import corpus, launching
from tests.support import sshd as sshd_parts

RUN = "20260101-120000-pretrain-abcd"
FLAGS = (*corpus.TINY, "--epochs", "8", "--batch_size", "2", "--accumulation_steps", "2", "--save_interval", "5")
QUIET = "HF_ENDPOINT=http://127.0.0.1:9 PIP_INDEX_URL=http://127.0.0.1:9/simple"


class Hosts:
    """The hosts ``old`` and ``new``, each behind an sshd of its own; ``home`` is the laptop."""

    def __init__(self, folder: pathlib.Path, old, new, *, more_new: str = "") -> None:
        self.old_root, self.new_root = folder / "old" / "root", folder / "new" / "root"
        ssh_home = conftest.make_ssh_home(folder, old)
        self.home, self.environ = ssh_home.home, {**ssh_home.environ, "OMP_NUM_THREADS": "1"}
        hosts = (("old", old, self.old_root, 2.0, ""), ("new", new, self.new_root, 16.0, more_new))
        (self.home / "launch.toml").write_text(
            "".join(
                f'[hosts.{name}]\nssh = "{server.address}"\nroot = "{root}"\nidentity_file = "{server.user_key}"\n'
                f"price_per_hour = {price}\n{launching.AS_IT_IS}{more}\n"
                for name, server, root, price, more in hosts
            )
        )
        (self.home / "launch.known_hosts").write_text(old.known_hosts() + new.known_hosts())

    def launch(self, *args: str, timeout: float = 240) -> subprocess.CompletedProcess:
        return self._run([sys.executable, "-m", "launch", *args], timeout)

    def killed_at(self, where: str, *args: str, timeout: float = 240) -> subprocess.CompletedProcess:
        return self._run([sys.executable, "-m", "tests.support.moving", where, *args], timeout)

    def _run(self, command: list[str], timeout: float) -> subprocess.CompletedProcess:
        return subprocess.run(
            command,
            cwd=self.home,
            env=self.environ,
            capture_output=True,
            text=True,
            timeout=timeout,
            stdin=subprocess.DEVNULL,
            check=False,
        )

    @property
    def run_dir(self) -> pathlib.Path:
        return self.new_root / "runs" / RUN

    def steps_done(self) -> list[str]:
        return list(json.loads((self.home / ".migrate" / "old.to.new" / "state.json").read_bytes())["steps"])


@contextlib.contextmanager
def servers(folder: pathlib.Path):
    """Two servers whose users have an empty home and no network that answers."""
    (folder / "user-home").mkdir(parents=True)
    options = f"SetEnv HOME={folder}/user-home {QUIET}"
    old = sshd_parts.start(folder / "old-server", options=options)
    new = sshd_parts.start(folder / "new-server", options=options)
    try:
        yield old, new
    finally:
        old.stop()
        new.stop()


def stopped_run(root: pathlib.Path, forker, *, ranks: int) -> None:
    """A pretrain run below ``root`` that was asked to stop after a few steps, and everything around it."""
    from minimind.rundir import RunSpec, publish

    corpus.make(root)
    (root / "dataset" / "notes.txt").write_text("no data")
    data = root / "dataset" / "pretrain_hq.jsonl"
    words = root / "out" / "tokenizer"
    reads = [data, words / "tokenizer.json", words / "tokenizer_config.json"]
    flags = ["--save_dir", f"{root}/out", "--data_path", str(data), "--tokenizer", str(words), *FLAGS]
    inputs = [
        {"path": str(p), "sha256": hashlib.sha256(p.read_bytes()).hexdigest(), "bytes": p.stat().st_size} for p in reads
    ]
    run_dir = root / "runs" / RUN
    run_dir.mkdir(parents=True, mode=0o700)
    spec = RunSpec(run_id=RUN, stage="pretrain", flags=flags, nproc=ranks, executor="venv", inputs=inputs)
    publish(run_dir / "spec.json", spec.to_json(), mode=0o444)
    forker.start(root, "pretrain", *flags, run=RUN, nproc=ranks if ranks > 1 else 0)
    launching.wait_for(lambda: launching.steps_of(run_dir) >= 7)
    (run_dir / "stop").touch()
    assert not any(forker.wait()), forker.log.read_text()
    done = corpus.metrics(run_dir)[-1]["step"]
    assert 7 <= done < 40, "it was stopped in the middle"


def uninterrupted(folder: pathlib.Path, forker) -> list[dict]:
    """What the run would have done if nobody had stopped it."""
    corpus.make(folder)
    return forker.train(folder, "pretrain", *FLAGS, run="whole")


def contents(folder: pathlib.Path) -> dict[str, str]:
    """Every file below a folder and its sha256."""
    return {
        str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest()
        for p in folder.rglob("*")
        if p.is_file() and not p.is_symlink()
    }


def ended(run_dir: pathlib.Path, attempt: int) -> None:
    """Wait for an attempt's last word."""
    launching.wait_for(lambda: (run_dir / "attempts" / str(attempt) / "exit.json").exists(), timeout_s=200)


def end_all(root: pathlib.Path) -> None:
    """Kill what runs below a root, the trial too."""
    for handle in (*root.glob("runs/*/handle.json"), *root.glob(".migrate/smoke/runs/*/handle.json")):
        with contextlib.suppress(OSError, ValueError, KeyError):
            pid = json.loads(handle.read_bytes())["pid"]
            if str(root) in pathlib.Path(f"/proc/{pid}/cmdline").read_text():
                os.kill(pid, signal.SIGKILL)


def _die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(60)


def main(where: str, argv: list[str]) -> None:
    from launch.cli import main as launch
    from launch.migrate import Journal
    from launch.transport.ssh import SshTransport

    kind, _, what = where.partition(":")
    start, record, calls = SshTransport.start, Journal.record, [0]

    def counted(self, words, stdin):
        running = start(self, words, stdin)
        calls[0] += 1
        if kind == "call" and calls[0] == int(what):
            time.sleep(0.05)  # what was to be sent is under way
            _die()
        if kind == "count":
            pathlib.Path(what).write_text(str(calls[0]))
        return running

    def recorded(self, step, facts):
        if kind == "before" and step == what:
            _die()
        record(self, step, facts)
        if kind == "after" and step == what:
            _die()

    SshTransport.start, Journal.record = counted, recorded
    launch(argv)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:])
