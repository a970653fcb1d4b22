"""`launch logs` where nothing trains: run directories as they may lie on this machine, read by the real command."""

import json
import subprocess
import sys

import pytest

from tests.support import launching
from tests.support.launching import log_of

RUN = "20260101-120000-dpo-abcd"


@pytest.fixture
def home(tmp_path):
    made = launching.local_home(tmp_path)
    (made.root / "runs" / RUN).mkdir(parents=True)
    put(made, "spec.json", {"run_id": RUN, "stage": "dpo", "flags": [], "nproc": 2, "executor": "venv"})
    return made


def put(home, name, value):
    path = home.root / "runs" / RUN / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value))


def failed(home):
    """A run whose trainer printed its paragraph and wrote it down."""
    said = {"what": "the loss became nan", "why": "step 3", "remedy": "lower the learning rate"}
    put(home, "handle.json", {"kind": "venv", "pid": 1, "attempt": 1, "nproc": 2})
    put(home, "attempts/1/outcome.json", {"status": "error", "reason": "nan_loss", "last_step": 3, **said})
    put(home, "attempts/1/exit.json", {"code": 1})
    log = f"step 1\nstep 2\nerror: {said['what']}\n  why: {said['why']}\n  remedy: {said['remedy']}\n"
    log_of(home.root / "runs" / RUN).write_text(log)
    return log


def test_every_line_is_an_object_with_its_rank_and_attempt(home):
    log = failed(home)
    (home.root / "runs" / RUN / "attempts" / "1" / "log.rank1.txt").write_bytes(b"one\r\ntwo \xff")
    told = [json.loads(line) for line in home.launch("logs", RUN, "--json", check=True).stdout.splitlines()]
    assert [line["line"] for line in told] == log.splitlines()
    assert {(line["run_id"], line["attempt"], line["rank"]) for line in told} == {(RUN, 1, None)}
    ranked = home.launch("logs", RUN, "--json", "--rank", "1", check=True).stdout.splitlines()
    assert [json.loads(line)["line"] for line in ranked] == ["one", "two \ufffd"]
    followed = home.launch("logs", RUN, "-f", "--json")
    assert followed.returncode == 6
    assert [json.loads(line)["line"] for line in followed.stdout.splitlines()] == log.splitlines()


@pytest.mark.parametrize("one_place", [True, False])
def test_why_a_run_failed_is_shown_once_in_each_place(home, one_place):
    failed(home)
    if one_place:
        done = subprocess.run(
            ["sh", "-c", 'exec "$@" 2>&1', "sh", sys.executable, "-m", "launch", "logs", "-f", RUN],
            cwd=home.home,
            env=home.environ,
            capture_output=True,
            text=True,
        )
        assert done.stdout.count("the loss became nan") == 1 and "stands above" in done.stdout
    else:
        done = home.launch("logs", "-f", RUN)
        assert done.stdout.count("the loss became nan") == done.stderr.count("the loss became nan") == 1
    assert done.returncode == 6


def test_a_run_without_any_log_says_so_with_an_exit_code(home):
    nothing = home.launch("logs", RUN)
    assert (nothing.returncode, nothing.stdout) == (10, "")
    assert "has no log yet: it is PREPARED" in nothing.stderr
    put(home, "handle.json", {"kind": "venv", "pid": 1, "start_time": "x", "attempt": 1, "nproc": 2})
    lost = home.launch("logs", RUN, "--json")
    assert (lost.returncode, lost.stdout) == (7, "")
    assert "left no log" in lost.stderr and "launch resume" in lost.stderr


def test_a_rank_or_an_attempt_that_it_does_not_have_is_named(home):
    failed(home)
    for args, told in ((("--rank", "2"), "no rank 2"), (("--attempt", "2"), "no attempt 2")):
        done = home.launch("logs", RUN, *args)
        assert done.returncode == 3 and told in done.stderr
