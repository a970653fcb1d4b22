"""Tracking with the real wandb, without a network: recorded under one id, and nothing that befalls it stops a step."""

import contextlib
import os
import pathlib
import signal
import socket
import time

import pytest

from minimind import tracker
from tests.support import corpus

KEY = "0123456789abcdef0123456789abcdef01234567"
STEPS = 300
LONGEST_LOG_S = 0.5
"""A log call writes to a pipe; on a busy machine this process may wait for its turn that long, for wandb never."""


@pytest.fixture
def environ(tmp_path, monkeypatch):
    for name in list(os.environ):
        if name.startswith("WANDB"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("WANDB_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setenv("WANDB_CONFIG_DIR", str(tmp_path / "config"))
    return monkeypatch


def make(tmp_path, **changes):
    folder = tmp_path / "run"
    folder.mkdir(exist_ok=True)
    given = {"project": "MiniMind", "name": "a name", "run_id": "the-id", "config": {"epochs": 1}, "folder": folder}
    return tracker.Tracker(**{**given, **changes})


def log(one, steps=STEPS):
    """The longest that one call took."""
    longest = 0.0
    for step in range(1, steps + 1):
        began = time.perf_counter()
        one.log({"step": step, "loss": 1 / step, "lr": 1e-3})
        longest = max(longest, time.perf_counter() - began)
    return longest


def descendants(pid):
    found = []
    with contextlib.suppress(OSError):
        for child in pathlib.Path(f"/proc/{pid}/task/{pid}/children").read_text().split():
            found += [int(child), *descendants(int(child))]
    return found


def core_of(one):
    """The pid of wandb's own process, once there is one."""
    until = time.monotonic() + 90
    while time.monotonic() < until:
        for pid in descendants(one.process.pid):
            with contextlib.suppress(OSError):
                if b"wandb-core" in pathlib.Path(f"/proc/{pid}/cmdline").read_bytes():
                    return pid
        time.sleep(0.1)
    raise AssertionError("wandb did not start")


def recorded(folder):
    return sorted((folder / "wandb").glob("offline-run-*/run-*.wandb"))


def test_a_resumed_training_records_under_one_id_offline_and_the_key_is_nowhere(tmp_path, environ):
    folder = corpus.make(tmp_path / "work")
    environ.setenv("WANDB_API_KEY", KEY)
    environ.setenv("WANDB_MODE", "offline")
    flags = (*corpus.TINY, "--use_wandb", "--batch_size", "4", "--accumulation_steps", "1", "--log_interval", "1")
    first = corpus.train_apart(folder, "pretrain", *flags, "--max_steps", "2", run="one")
    second = corpus.train_apart(folder, "pretrain", *flags, run="one")
    files = recorded(folder / "runs" / "one")
    assert [path.name for path in files] == ["run-one.wandb"] * 2
    for path, steps in zip(files, (2, 4), strict=True):
        data = path.read_bytes()
        assert data.count(b"grad_norm") >= steps and b"MiniMind-Pretrain-Epoch-1-BatchSize-4" in data
        assert b"hidden_size" in data
    for path in folder.rglob("*"):
        assert not path.is_file() or KEY.encode() not in path.read_bytes(), path
    for done in (first, second):
        assert KEY not in done.stdout + done.stderr and "warning" not in done.stdout


def test_wandbs_process_killed_in_the_middle_costs_no_step_and_is_said(tmp_path, environ, capfd):
    one = make(tmp_path)
    log(one)
    os.kill(core_of(one), signal.SIGKILL)
    longest = log(one)
    began = time.monotonic()
    one.close(failed=False)
    assert longest < LONGEST_LOG_S and time.monotonic() - began < tracker.FINISH_S + 5
    said = capfd.readouterr().out
    assert "training goes on" in said or "did not finish" in said


def test_the_trackers_own_process_killed_costs_no_step_and_is_said_once(tmp_path, environ, capfd):
    one = make(tmp_path)
    os.killpg(one.process.pid, signal.SIGKILL)
    one.process.wait()
    assert log(one) < LONGEST_LOG_S
    one.close(failed=False)
    assert capfd.readouterr().out.count("training goes on") == 1


def test_the_trackers_own_process_killed_after_the_last_step_is_said_and_no_traceback(tmp_path, environ, capfd):
    one = make(tmp_path)
    os.killpg(one.process.pid, signal.SIGKILL)
    one.process.wait()
    one.close(failed=False)
    assert capfd.readouterr().out.count("training goes on") == 1


def test_a_tracker_that_reads_nothing_blocks_no_step_and_is_ended(tmp_path, environ, capfd):
    environ.setattr(tracker, "FINISH_S", 1.0)
    one = make(tmp_path)
    group = one.process.pid
    os.killpg(group, signal.SIGSTOP)
    assert log(one, steps=5000) < LONGEST_LOG_S
    assert one.lost > 0
    began = time.monotonic()
    one.close(failed=False)
    assert time.monotonic() - began < 10
    with pytest.raises(ProcessLookupError):
        os.killpg(group, 0)
    said = capfd.readouterr().out
    assert "was killed" in said and f"lacks {one.lost:,} steps" in said


def test_a_network_that_swallows_everything_blocks_no_step(tmp_path, environ):
    with socket.create_server(("127.0.0.1", 0)) as deaf:
        environ.setenv("WANDB_API_KEY", KEY)
        environ.setenv("WANDB_BASE_URL", f"http://127.0.0.1:{deaf.getsockname()[1]}")
        environ.setattr(tracker, "FINISH_S", 1.0)
        one = make(tmp_path)
        assert log(one) < LONGEST_LOG_S
        began = time.monotonic()
        one.close(failed=False)
        assert time.monotonic() - began < 10


def test_a_server_that_does_not_answer_is_replaced_by_recording_offline(tmp_path, environ, capfd):
    environ.setenv("WANDB_API_KEY", KEY)
    environ.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")
    one = make(tmp_path)
    log(one)
    one.close(failed=False)
    assert "recording offline" in capfd.readouterr().out
    assert recorded(tmp_path / "run")[0].read_bytes().count(b"loss") >= STEPS


def test_without_wandb_the_reason_is_said_and_steps_go_on(tmp_path, environ, capfd):
    (tmp_path / "wandb.py").write_text("raise ImportError('No module named wandb')\n")
    environ.syspath_prepend(str(tmp_path))
    one = make(tmp_path)
    assert log(one) < LONGEST_LOG_S
    one.close(failed=False)
    assert "not tracking: No module named wandb; pip install wandb" in capfd.readouterr().out


@pytest.mark.parametrize("fault", ["disabled", "no folder"])
def test_switched_off_or_without_a_folder_it_ends_well(fault, tmp_path, environ):
    if fault == "disabled":
        environ.setenv("WANDB_MODE", "disabled")
    one = make(tmp_path, folder=tmp_path / "run" if fault == "disabled" else pathlib.Path("/proc/nowhere"))
    assert log(one, steps=5) < LONGEST_LOG_S
    process = one.process
    one.close(failed=False)
    assert process.returncode is not None
    assert fault != "disabled" or not list((tmp_path / "run").iterdir())
