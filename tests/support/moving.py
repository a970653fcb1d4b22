"""Two hosts, a stopped run on the first, and a launcher that dies at an exact place.

The launcher is the real command line, forked from a process that has imported it, and kills itself (SIGKILL) at
``in:STEP:N`` (the Nth remote command of that step has just been sent), ``before:STEP`` (its work is done, but not
written down) or ``after:STEP``. ``count:FILE`` lets it live, and writes how many remote commands each step sent.
"""

import collections
import contextlib
import hashlib
import json
import os
import pathlib
import re
import secrets
import shutil
import signal
import subprocess
import sys
import time
import traceback

import pytest

from tests import conftest
from tests.support import corpus, launching
from tests.support import sshd as sshd_parts

RUN = f"20260101-120000-pretrain-{secrets.token_hex(2)}"
"""Of this worker alone: a container is named after its run, and all of them have one engine here."""
FLAGS = (*corpus.TINY, "--epochs", "8", "--batch_size", "2", "--accumulation_steps", "2", "--save_interval", "5")
QUIET = "HF_ENDPOINT=http://127.0.0.1:9 PIP_INDEX_URL=http://127.0.0.1:9/simple"


STOPPING = """
from minimind import loop

one_step = loop.one_step

def stopping(config, attempt, ranks, state, *rest):
    if state.step == 7:
        attempt.dir.stop.touch()
    return one_step(config, attempt, ranks, state, *rest)

loop.one_step = stopping
"""
"""Asks the run to stop, as `launch stop` does, always at the same step: a test that waits for one may come late."""


class Hosts:
    """The hosts ``old`` and ``new``, each behind an sshd of its own; ``home`` is the laptop."""

    names = ("old", "new")

    def __init__(self, folder: pathlib.Path, old, new, launcher) -> None:
        self.old, self.new, self.launcher = old, new, launcher
        self.old_root, self.new_root = folder / "old" / "root", folder / "new" / "root"
        ssh_home = conftest.make_ssh_home(folder, old)
        self.home, self.environ = ssh_home.home, {**ssh_home.environ, "OMP_NUM_THREADS": "1"}
        hosts = (("old", old, self.old_root, 2.0), ("new", new, self.new_root, 16.0))
        (self.home / "launch.toml").write_text(
            "".join(
                f'[hosts.{name}]\nssh = "{server.address}"\nroot = "{root}"\nidentity_file = "{server.user_key}"\n'
                f"price_per_hour = {price}\n{launching.AS_IT_IS}\n"
                for name, server, root, price in hosts
            )
        )
        (self.home / "launch.known_hosts").write_text(old.known_hosts() + new.known_hosts())

    def launch(self, *args: str, where: str = "-") -> subprocess.CompletedProcess:
        """Run the command line, to its end or to ``where`` it dies."""
        out, err = (self.home.parent / f"std{name}" for name in ("out", "err"))
        request = {"argv": args, "cwd": str(self.home), "environ": self.environ, "where": where}
        code = self.launcher.ask(**request, out=str(out), err=str(err))
        return subprocess.CompletedProcess(args, code, out.read_text(), err.read_text())

    @property
    def run_dir(self) -> pathlib.Path:
        return self.new_root / "runs" / RUN

    def steps_done(self) -> list[str]:
        return list(json.loads((self.home / ".migrate" / ".to.".join(self.names) / "state.json").read_bytes())["steps"])


class Launcher:
    """Forks command lines; importing them costs more than what most of them do here."""

    def __init__(self) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tests.support.moving"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=corpus.ROOT,
            env=corpus.environ(),
        )

    def ask(self, **request) -> int:
        self.process.stdin.write(json.dumps(request) + "\n")
        self.process.stdin.flush()
        return int(json.loads(self.process.stdout.readline()))

    def close(self) -> None:
        self.process.stdin.close()
        self.process.wait(30)


@pytest.fixture(scope="session")
def launcher():
    made = Launcher()
    yield made
    made.close()


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    """Two servers; each test has roots of its own."""
    if sshd_parts.MISSING:
        pytest.skip(sshd_parts.MISSING)
    with servers(tmp_path_factory.mktemp("servers")) as started:
        yield started


@contextlib.contextmanager
def servers(folder: pathlib.Path):
    """Two servers whose users have an empty home and no network that answers; the new one's may let others in."""
    (folder / "user-home").mkdir(parents=True)
    options = f"SetEnv HOME={folder}/user-home {QUIET}"
    keys = f"{folder}/new-server/authorized_keys {folder}/user-home/.ssh/authorized_keys"
    old = sshd_parts.start(folder / "old-server", options=options)
    new = sshd_parts.start(folder / "new-server", options=f"{options}\nAuthorizedKeysFile {keys}")
    try:
        yield old, new
    finally:
        for server in (old, new):
            if server.process.poll() is None:  # a test may have let one die
                server.stop()


def stopped_run(root: pathlib.Path, forker, *, ranks: int) -> None:
    """A pretrain run below ``root`` that was asked to stop after a few steps, and everything around it."""
    from minimind.durable import tree_hash
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
    code_hash = tree_hash(corpus.ROOT / "minimind")
    code = root / "code" / code_hash[:16] / "minimind"
    shutil.copytree(corpus.ROOT / "minimind", code, ignore=shutil.ignore_patterns("__pycache__"))
    spec = RunSpec(
        run_id=RUN, stage="pretrain", flags=flags, nproc=ranks, executor="venv", inputs=inputs, code_hash=code_hash
    )
    publish(run_dir / "spec.json", spec.to_json(), mode=0o444)
    forker.start(root, "pretrain", *flags, run=RUN, nproc=ranks if ranks > 1 else 0, before=STOPPING)
    assert not any(forker.wait()), forker.log.read_text()
    assert corpus.metrics(run_dir)[-1]["step"] == 8


def copy_root(old: pathlib.Path, new: pathlib.Path) -> None:
    """A root as it would be elsewhere: the paths in its runs' spec.json are those of the copy."""
    shutil.copytree(old, new, dirs_exist_ok=True)
    for spec in new.glob("runs/*/spec.json"):
        spec.chmod(0o600)
        spec.write_text(spec.read_text().replace(str(old), str(new)))
        spec.chmod(0o444)


@contextlib.contextmanager
def in_process(hosts: Hosts, *, wait: bool = False, stage: str | None = None, flags: tuple[str, ...] = ()):
    """A move from old to new in this process, and what its survey finds."""
    from launch.cli import session
    from launch.inventory import load
    from launch.migrate import Asked, Journal, Move
    from launch.migrate.survey import survey
    from launch.runs.start import Request
    from launch.transport import connect
    from tests.support.syncing import Quiet

    known = load(None, cwd=hosts.home, environ=hosts.environ)
    ends = dict(zip(("source", "target"), map(known.host, hosts.names), strict=True))
    asked = Asked(**ends, stage=stage, flags=flags, nproc=1, wait=wait)
    with contextlib.ExitStack() as stack:

        def far(host):
            return stack.enter_context(connect(host, known))

        here = far(known.host("local"))
        move = Move(
            asked,
            inventory=known,
            connect=far,
            ends=lambda transport: session.ends(transport, here, known),
            laptop=session.laptop(known.home),
            request=lambda host, stage, words, nproc: Request(stage=stage, flags=words, nproc=nproc, name=None),
            secrets=lambda names: {},
            voice=Quiet(),
            journal=Journal(known.home, *hosts.names),
            now_utc=lambda: "20260101T000000Z",
        )
        yield move, survey(move)


def uninterrupted(folder: pathlib.Path, forker, *, ranks: int) -> list[dict]:
    """What the run would have done if nobody had stopped it."""
    corpus.make(folder)
    return forker.train(folder, "pretrain", *FLAGS, run="whole", nproc=ranks if ranks > 1 else 0)


def contents(folder: pathlib.Path) -> dict[str, str]:
    """Every file below a folder and its sha256."""
    return {
        str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest()
        for p in folder.rglob("*")
        if p.is_file() and not p.is_symlink()
    }


def ended(run_dir: pathlib.Path, attempt: int) -> None:
    """Wait for an attempt's last word."""
    launching.wait_for(lambda: (run_dir / "attempts" / str(attempt) / "exit.json").exists(), timeout_s=600)


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


def _command_line(where: str, argv: list[str]) -> None:
    from launch.cli import main as launch
    from launch.migrate import Journal
    from launch.transport.local import LocalTransport
    from launch.transport.ssh import SshTransport
    from launch.ui import Terminal

    kind, _, what = where.partition(":")
    far = LocalTransport if "local" in argv[2:3] else SshTransport  # the target of `migrate FROM TO`
    start, record, say = far.start, Journal.record, Terminal.say
    step, calls = ["-"], collections.Counter()

    def started(self, words, stdin):
        running = start(self, words, stdin)
        calls[step[0]] += 1
        if kind == "in" and what == f"{step[0]}:{calls[step[0]]}":
            time.sleep(0.05)  # what was to be sent is under way
            _die()
        if kind == "count":
            pathlib.Path(what).write_text(json.dumps(calls))
        return running

    def recorded(self, name, facts):
        if (kind, name) == ("before", what) or (kind == "in" and what.startswith(f"{name}:")):
            _die()  # a step that was cut off before may have less to send
        record(self, name, facts)
        if kind == "after" and name == what:
            _die()

    def said(self, text):
        if (begun := re.match(r"\[\d+/\d+\] (\w+): ", text)) and "done before" not in text:
            step[0] = begun[1]
        say(self, text)

    far.start, Journal.record, Terminal.say = started, recorded, said
    launch(argv)


def _child(request: dict) -> None:
    code = 99
    try:
        for number, name in ((1, request["out"]), (2, request["err"])):
            os.dup2(os.open(name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), number)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        os.chdir(request["cwd"])
        os.environ.clear()
        os.environ.update(request["environ"])
        _command_line(request["where"], request["argv"])
    except SystemExit as leave:
        code = int(leave.code or 0)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _serve() -> None:
    import fabric  # noqa: F401

    import launch.cli.migrate
    import launch.migrate.forecast
    import launch.transport.local
    import launch.transport.ssh  # noqa: F401

    answers = os.fdopen(os.dup(1), "w")
    for line in sys.stdin:
        if not (pid := os.fork()):
            _child(json.loads(line))
        print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), file=answers, flush=True)


if __name__ == "__main__":
    _serve()
