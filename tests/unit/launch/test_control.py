"""Stopping a run that cannot say how it ended, and one of which nobody knows whether it lives."""

import json
import os
import subprocess
import time

import pytest

from launch.errors import Exit, LaunchError
from launch.inventory import Host
from launch.runs import control
from launch.runs.observe import observe
from launch.transport.local import LocalTransport
from minimind.process import boot_id, start_time
from minimind.rundir import RunDir, RunSpec, State, to_json

RUN = "20260102-030405-pretrain-0a1b"


class Voice:
    def say(self, text):
        pass


def made(root, executor, **handle) -> RunDir:
    run = RunDir(root / "runs" / RUN)
    run.attempt(1).mkdir(parents=True)
    run.spec.write_bytes(RunSpec(run_id=RUN, stage="pretrain", flags=[], nproc=1, executor=executor).to_json())
    run.handle.write_bytes(to_json({"boot_id": boot_id(), "attempt": 1, **handle}))
    return run


def stop(root, *, now):
    with LocalTransport(Host(name="here", ssh=None, root=str(root))) as transport:
        (run,) = observe(transport, root=str(root))
        return run, control.stop(transport, run, Voice(), timeout_s=30, now=now)


def test_where_the_supervisor_dies_without_a_word_the_launcher_writes_that_it_was_stopped(tmp_path):
    silent = subprocess.Popen(["sleep", "600"])  # SIGQUIT ends it, and it writes nothing
    try:
        run = made(tmp_path, "venv", pid=silent.pid, start_time=start_time(silent.pid))
        run.beat.write_bytes(to_json({"time": time.time(), "attempt": 1, "last_step": 9, "training": True}))
        run.metrics.write_text('{"step": 11, "loss": 2.0}\n{"step": 12, "loss": 1.5}\n')
        before, after = stop(tmp_path, now=True)
        assert before.state.state is State.RUNNING and silent.wait(10) < 0
        assert (after.state.state, after.state.last_step) == (State.STOPPED, 12)
        assert json.loads((run.attempt(1) / "exit.json").read_text())["last_step"] == 12
        assert "steps since then are lost" in after.said["remedy"]
    finally:
        silent.kill()
        silent.wait()


@pytest.mark.parametrize("now", [False, True])
def test_a_run_whose_engine_does_not_answer_is_told_at_once_and_still_asked(tmp_path, monkeypatch, now):
    run = made(tmp_path, "docker", container="c")
    nothing = tmp_path / "bin"
    nothing.mkdir()
    (nothing / "docker").write_text("#!/bin/sh\nexit 1\n")
    (nothing / "docker").chmod(0o755)
    monkeypatch.setenv("PATH", f"{nothing}:{os.environ['PATH']}")
    began = time.monotonic()
    with pytest.raises(LaunchError) as told:
        stop(tmp_path, now=now)
    assert told.value.code is Exit.HOST_NOT_READY and time.monotonic() - began < 20
    assert run.stop.exists() is not now
