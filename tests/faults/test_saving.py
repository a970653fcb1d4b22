"""Checkpoints are written beside the training, and nothing that is promised about them gets weaker by it."""

import json
import os
import signal
import threading
import time

import pytest
import torch

from minimind import checkpoint
from minimind.metrics import Metrics
from minimind.rundir import Reason, RunDir, RunError
from minimind.saving import Saver, snapshot
from tests.faults.test_kills import all_whole, campaign, numbers
from tests.support import corpus
from tests.support.corpus import TINY

SLOW_DISK = """
import os, time
import torch._dynamo
fsync = os.fsync
def slow(fd):
    time.sleep({seconds})
    fsync(fd)
os.fsync = slow
"""
"""Every fsync takes so long: a checkpoint with its eight is on its way through several steps."""


class Held:
    """Cannot be written before it is let go, like a disk that answers nothing for a while."""

    def __init__(self):
        self.begun, self.go = threading.Event(), threading.Event()

    def __reduce__(self):
        self.begun.set()
        assert self.go.wait(30)
        return (dict, ())


class Full:
    """Meets a full disk when it is written."""

    def __reduce__(self):
        raise OSError(28, "No space left on device")


@pytest.fixture
def run(tmp_path):
    made = RunDir(tmp_path / "run")
    made.root.mkdir()
    return made


def saved(run, step):
    folder = run.checkpoints / f"step-{step:08d}"
    return torch.load(folder / "parameters.pt", weights_only=True)


def test_a_checkpoint_holds_the_state_of_its_step_although_training_goes_on(run):
    weights, held = {"w": torch.full((9,), 1.0)}, Held()
    with Saver(run, keep=3) as saver:
        saver.save(step=1, state={}, parameters=weights, optimizer=held, aside=True)
        assert held.begun.wait(30)
        weights["w"].fill_(2.0)  # the next updates
        assert not run.checkpoint_steps(), "what is still being written has no name"
        saver.check()  # waits for nothing
        held.go.set()
    assert run.checkpoint_steps() == [1] and torch.equal(saved(run, 1)["w"], torch.full((9,), 1.0))


def test_one_checkpoint_is_on_its_way_at_most_and_the_wait_for_it_is_counted(run):
    first, second = Held(), Held()
    with Saver(run, keep=3) as saver:
        saver.save(step=1, state={}, parameters={"w": torch.ones(3)}, optimizer=first, aside=True)
        assert first.begun.wait(30)
        quick_s = saver.waited_s
        threading.Timer(0.3, first.go.set).start()
        saver.save(step=2, state={}, parameters={"w": torch.ones(3)}, optimizer=second, aside=True)
        assert run.checkpoint_steps() == [1] and saver.waited_s - quick_s > 0.2 > quick_s
        second.go.set()
    assert run.checkpoint_steps() == [1, 2] and saver.saves == 2


def test_a_full_disk_met_by_the_thread_is_raised_at_the_next_step_as_its_paragraph(run):
    with pytest.raises(RunError) as failed, Saver(run, keep=3) as saver:
        saver.save(step=1, state={}, parameters={"w": torch.ones(3)}, optimizer={}, aside=True)
        saver.save(step=2, state={}, parameters={"w": torch.ones(3)}, optimizer=Full(), aside=True)
        deadline = time.monotonic() + 30
        while time.monotonic() < deadline:
            saver.check()
            time.sleep(0.005)
    assert failed.value.reason is Reason.DISK_FULL and "a checkpoint needs 12 bytes" in failed.value.what
    assert run.checkpoint_steps() == [1] and not list(run.checkpoints.glob(".*"))


@pytest.mark.parametrize("how", ["the next save", "the last save", "the end"])
def test_it_is_raised_by_whatever_waits_for_the_thread_first(run, how):
    with pytest.raises(RunError, match="disk is full"), Saver(run, keep=3) as saver:
        saver.save(step=2, state={}, parameters={"w": torch.ones(3)}, optimizer=Full(), aside=True)
        if how != "the end":
            saver.save(step=3, state={}, parameters={}, optimizer={}, aside=how == "the next save")
    assert not run.checkpoint_steps()


def test_what_ended_the_run_is_not_hidden_by_the_save_that_failed_meanwhile(run):
    with pytest.raises(RunError, match="diverged"), Saver(run, keep=3) as saver:
        saver.save(step=2, state={}, parameters={"w": torch.ones(3)}, optimizer=Full(), aside=True)
        raise RunError("training diverged", why="it did", remedy="none")


def test_metrics_are_on_the_disk_before_the_checkpoint_of_their_steps_has_its_name(run, monkeypatch):
    told, fsync, rename = [], os.fsync, os.rename

    def synced(fd):
        told.append(os.path.basename(os.readlink(f"/proc/self/fd/{fd}")))
        fsync(fd)

    def renamed(*args, **more):
        told.append(f"-> {os.path.basename(args[1])}")
        rename(*args, **more)

    monkeypatch.setattr(os, "fsync", synced)
    monkeypatch.setattr(os, "rename", renamed)
    metrics = Metrics(run.metrics, log_interval=9, total_steps=9, steps_per_epoch=9, epochs=1)
    with metrics, Saver(run, keep=3, metrics=metrics) as saver:
        saver.save(step=3, state={}, parameters={"w": torch.ones(3)}, optimizer={}, aside=True)
    assert told.index("metrics.jsonl") < told.index("-> step-00000003")


def test_a_snapshot_shares_no_memory_and_keeps_what_is_no_tensor():
    state = {"state": {0: {"step": torch.tensor(3.0), "exp_avg": torch.ones(4)}}, "param_groups": [{"lr": 0.1}]}
    copied, done = snapshot(state)
    state["state"][0]["step"] += 1
    state["state"][0]["exp_avg"].zero_()
    state["param_groups"][0]["lr"] = 9.0
    assert done is None and copied["param_groups"] == [{"lr": 0.1}]
    assert float(copied["state"][0]["step"]) == 3.0 and copied["state"][0]["exp_avg"].sum() == 4


@pytest.fixture(scope="module")
def folder(tmp_path_factory, forker):
    made = corpus.make(tmp_path_factory.mktemp("saving"))
    forker.train(made, "pretrain", *TINY, "--epochs", "1", "--accumulation_steps", "1", run="base")
    (made / "out" / "pretrain_64.pth").rename(made / "out" / "base_64.pth")
    return made


def test_kills_in_the_middle_of_a_write_lose_nothing_and_leave_no_half(forker, folder, monkeypatch):
    # most of the time something is being written, so most kills meet it there
    start = forker.start
    monkeypatch.setattr(
        forker, "start", lambda *words, **more: start(*words, **more, before=SLOW_DISK.format(seconds=0.01))
    )
    campaign(forker, folder, "pretrain", kills=2, seed=31)


def test_a_stop_waits_for_what_is_being_written_and_saves_its_own_step(forker, folder):
    flags = (*TINY, "--from_weight", "base", "--batch_size", "4", "--accumulation_steps", "1", "--epochs", "400")
    before = SLOW_DISK.format(seconds=0.05)
    (pid,) = forker.start(folder, "pretrain", *flags, "--save_interval", "2", run="stopped", before=before)
    run, deadline = RunDir(folder / "runs" / "stopped"), time.monotonic() + 120
    while not run.checkpoint_steps() and time.monotonic() < deadline:
        time.sleep(0.005)
    while not list(run.checkpoints.glob(".step-*.tmp")) and time.monotonic() < deadline:
        time.sleep(0.001)
    os.kill(pid, signal.SIGTERM)  # while one is on its way
    assert forker.wait() == [0], forker.log.read_text()
    outcome = json.loads((run.attempt(1) / "outcome.json").read_text())
    assert outcome["status"] == "stopped" and outcome["last_step"] == run.checkpoint_steps()[-1]
    all_whole(run)
    assert not list(run.checkpoints.glob(".*")), "nothing half is left behind"
    lines = corpus.metrics(run.root)
    assert lines[-1]["step"] == outcome["last_step"] and all(line["save_s"] >= 0 for line in lines)
    assert max(line["save_s"] for line in lines) > 0.05, "a save waits for the one before it"


def test_losses_do_not_depend_on_how_often_it_is_saved(forker, folder):
    flags = (*TINY, "--from_weight", "base", "--batch_size", "4", "--accumulation_steps", "1", "--epochs", "3")
    often = forker.train(folder, "pretrain", *flags, "--save_interval", "1", run="often")
    once = forker.train(folder, "pretrain", *flags, "--save_interval", "1000", run="once")
    assert numbers(often) == numbers(once)
    states = [checkpoint.latest(RunDir(folder / "runs" / name), say=print) for name in ("often", "once")]
    assert all(torch.equal(states[0].parameters[key], states[1].parameters[key]) for key in states[0].parameters)
