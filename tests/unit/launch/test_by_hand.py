"""Runs that somebody started with `python -m minimind`: alive while anything of them lives, LOST when nothing does."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time

import pytest

from launch.errors import Exit, LaunchError
from launch.inventory import Host
from launch.runs import by_hand, control
from launch.runs.observe import observe
from launch.transport.local import LocalTransport
from minimind.rundir import RunDir, State, to_json

RUN = "20260102-030405-pretrain-0a1b"
TRAINER = """
import os, pathlib, sys, time
from minimind.attempt import Attempt
with Attempt("pretrain", [], run_dir=pathlib.Path(sys.argv[1]), save_dir=pathlib.Path(sys.argv[1])):
    if len(sys.argv) > 2 and os.fork() == 0:
        os.setsid()
    os.write(1, b"%d\\n" % os.getpid())
    time.sleep(600)
"""


class Quiet:
    def say(self, text):
        pass


@pytest.fixture
def trainer(tmp_path):
    """Starts what a trainer is to the run directory, with the trainers' own code; killed in the end."""
    started = []

    def start(*words):
        argv = [sys.executable, "-c", TRAINER, str(tmp_path / "runs" / RUN), *words]
        process = subprocess.Popen(argv, stdout=subprocess.PIPE, text=True)
        pids = [int(process.stdout.readline()) for _ in range(1 + len(words))]
        below = [pid for pid in pids if pid != process.pid]
        started.append((process, below))
        return process, below

    yield start
    for process, below in started:
        process.kill()
        process.wait()
        process.stdout.close()
        for pid in below:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


@pytest.fixture
def here(tmp_path):
    with LocalTransport(Host(name="here", ssh=None, root=str(tmp_path))) as transport:
        yield transport


def seen(here):
    (run,) = observe(here, root=here.host.root)
    return run


def stop(here, *, now):
    return control.stop(here, seen(here), Quiet(), timeout_s=30, now=now)


def foreign(tmp_path, *, quiet_s):
    """The run as one that another machine trained into this folder, last heard of so long ago."""
    run = RunDir(tmp_path / "runs" / RUN)
    owner = json.loads((run.lock / "owner.json").read_text())
    (run.lock / "owner.json").write_bytes(to_json({**owner, "host": "elsewhere", "boot_id": "other"}))
    run.metrics.write_text('{"step": 7, "loss": 2.0}\n')
    for file in (run.metrics, run.attempt(1) / "rank0.beat"):
        os.utime(file, (time.time() - quiet_s,) * 2)
    return run


def test_a_living_trainer_is_alive_and_is_lost_after_kill_9(here, tmp_path, trainer):
    process, _ = trainer()
    assert seen(here).state.state is State.STARTING
    (tmp_path / "runs" / RUN / "metrics.jsonl").write_text('{"step": 7, "loss": 2.0}\n')
    assert (seen(here).state.state, seen(here).state.last_step) == (State.RUNNING, 7)
    process.kill()
    process.wait()
    assert seen(here).state.state is State.LOST
    assert stop(here, now=True).state.state is State.LOST and stop(here, now=False).state.state is State.LOST


def test_what_holds_the_lock_keeps_a_run_alive_when_its_process_cannot_be_found(here, trainer):
    process, (child,) = trainer("with a child")
    process.kill()
    process.wait()
    assert not seen(here).state.state.ended
    os.kill(child, signal.SIGKILL)
    deadline = time.monotonic() + 5
    while not seen(here).state.state.ended and time.monotonic() < deadline:
        time.sleep(0.05)
    assert seen(here).state.state is State.LOST


def test_a_living_trainer_is_ended_by_stop_now(here, trainer):
    process, _ = trainer()
    ended = stop(here, now=True)
    assert process.wait(5) != 0 and ended.state.state is State.STOPPED and "started by hand" in ended.said["why"]


def test_a_trainer_of_another_machine_is_unknown_until_its_user_says_that_it_ended(here, tmp_path, trainer):
    process, _ = trainer()
    process.kill()
    process.wait()
    run = foreign(tmp_path, quiet_s=4000)
    assert seen(here).state.state is State.UNKNOWN
    with pytest.raises(LaunchError) as told:
        stop(here, now=False)
    assert told.value.code is Exit.HOST_NOT_READY and f"launch stop --now {RUN}" in told.value.remedy
    assert f"process {process.pid} on elsewhere" in told.value.why and "last wrote 400" in told.value.why
    assert run.stop.exists() and "step is 7" in told.value.why
    ended = stop(here, now=True)
    assert ended.state.state is State.STOPPED and "its user says that it has ended" in ended.said["why"]
    assert seen(here).state.state is State.STOPPED


def test_what_another_machine_writes_into_is_not_declared_ended(here, tmp_path, trainer):
    process, _ = trainer()
    process.kill()
    process.wait()
    foreign(tmp_path, quiet_s=5)
    with pytest.raises(LaunchError) as told:
        stop(here, now=True)
    assert told.value.code is Exit.REFUSED and seen(here).state.state is State.UNKNOWN


@pytest.mark.parametrize(
    ("owner", "said", "alive"),
    [
        ({"pid": 5, "host": "me", "boot_id": "b", "start_time": "9"}, {"started": "9"}, True),
        ({"pid": 5, "host": "me", "boot_id": "b", "start_time": "9"}, {"started": "8"}, False),
        ({"pid": 5, "host": "me", "boot_id": "b", "start_time": "9"}, {"lock": "held"}, True),
        ({"pid": 5, "host": "container", "boot_id": "b"}, {"lock": "free"}, False),
        ({"pid": 5, "host": "container", "boot_id": "b"}, {}, None),
        ({"pid": 5, "host": "me", "boot_id": "earlier"}, {"written": "100"}, False),
        ({"pid": 5, "host": "me", "boot_id": "earlier"}, {"written": "950", "lock": "free"}, None),
        ({"pid": 5, "host": "you", "boot_id": "yours"}, {"lock": "free", "written": "100"}, None),
        ({}, {"lock": "free"}, None),
        ([], {"started": "9"}, None),
    ],
)
def test_only_what_surely_ended_is_dead(owner, said, alive):
    machine = {"boot": "b", "node": "me"}
    assert by_hand._signs({"owner": json.dumps(owner), **said}, machine, 1000.0).alive is alive
