"""Who is behind when nothing moves, told from real processes in the states that a hung rank can be in."""

import os
import signal
import subprocess
import sys
import time

import pytest

from minimind.process import kernel_state, start_time
from minimind.pulse import Phase, Pulse, Watch
from minimind.rundir import Reason


@pytest.fixture
def rank(tmp_path):
    """Makes a rank: its pulse in the folder, its process one of ours."""
    children = []

    def make(number, code="import time; time.sleep(600)"):
        child = subprocess.Popen([sys.executable, "-S", "-c", code])
        children.append(child)
        pulse = Pulse(tmp_path / f"rank{number}.beat", rank=number, hang_timeout_s=10)
        pulse.identity = {"rank": number, "pid": child.pid, "start_time": start_time(child.pid)}
        pulse.at(Phase.APPLY, step=1)
        return pulse, child

    yield make
    for child in children:
        child.kill()
        child.wait()


def until(pid, states):
    deadline = time.monotonic() + 30
    while kernel_state(pid) not in states and time.monotonic() < deadline:
        time.sleep(0.01)


def look(watch, seconds):
    for _ in range(seconds // 4):
        trouble = watch.look(4)
        if trouble:
            return trouble
    return None


def test_of_two_in_the_same_place_the_stopped_one_hung(tmp_path, rank):
    (one, _), (two, child) = rank(0), rank(1)
    for pulse in (one, two):
        pulse.at(Phase.COMPUTE, step=7)
    os.kill(child.pid, signal.SIGSTOP)
    until(child.pid, "T")
    watch = Watch(tmp_path, 2)
    assert look(watch, 8) is None
    trouble = look(watch, 12)
    assert trouble.reason is Reason.HUNG and trouble.ranks == (1,)
    assert f"rank 1 (process {child.pid}) hung" in trouble.what and "in step 7, computing" in trouble.what


def test_of_two_in_the_same_place_the_one_that_computes_hung_and_the_sleeping_one_waits(tmp_path, rank):
    (one, child), (two, sleeper) = rank(0, "while True: pass"), rank(1)
    until(sleeper.pid, "S")
    for pulse in (one, two):
        pulse.at(Phase.COMPUTE, step=7)
    until(child.pid, "R")
    assert look(Watch(tmp_path, 2), 20).ranks == (0,)


def test_the_rank_furthest_behind_is_named_and_those_that_wait_for_it_are_not(tmp_path, rank):
    (one, _), (two, _) = rank(0), rank(1)
    one.at(Phase.SUM, step=7)
    two.at(Phase.READ, step=7)
    assert look(Watch(tmp_path, 2), 20).ranks == (1,)


def test_a_save_may_take_longer_and_whoever_waits_for_it_is_not_hung(tmp_path, rank):
    (one, _), (two, _) = rank(0), rank(1)
    one.at(Phase.APPLY, step=7)
    one.at(Phase.SAVE)
    two.at(Phase.SUM, step=8)
    watch = Watch(tmp_path, 2)
    assert look(watch, 48) is None
    assert look(watch, 20).ranks == (0,)


def test_a_rank_that_never_joined_is_named(tmp_path, rank):
    pulse, _ = rank(0)
    pulse.at(Phase.JOIN, step=1)
    watch = Watch(tmp_path, 2)
    assert look(watch, 56) is None
    trouble = look(watch, 12)
    assert trouble.ranks == (1,) and "before it joined the others" in trouble.what


def test_any_progress_starts_the_count_anew_and_a_watcher_that_slept_counts_little(tmp_path, rank):
    pulse, _ = rank(0)
    watch = Watch(tmp_path, 1)
    for step in range(2, 12):
        pulse.at(Phase.READ, step=step)
        assert watch.look(5) is None and watch.look(5) is None
    assert watch.look(3600) is None, "an hour in which this watcher did not run either"


def test_no_timeout_means_never(tmp_path, rank):
    pulse, _ = rank(0)
    pulse.hang_timeout_s = 0
    pulse.at(Phase.READ, step=5)
    assert look(Watch(tmp_path, 1), 4000) is None


def test_a_death_is_told_after_the_others_had_time_to_leave_and_a_clean_end_is_none(tmp_path, rank):
    (one, _), (two, child), (three, gone) = rank(0), rank(1), rank(2)
    three.close()
    watch = Watch(tmp_path, 3)
    assert watch.look(1) is None
    for process in (child, gone):
        process.kill()
        process.wait()
    for pulse in (one, two):
        pulse.at(Phase.SUM, step=3)
    assert watch.look(4) is None
    trouble = watch.look(4)
    assert trouble.reason is Reason.SIGNAL and trouble.ranks == (1,) and str(child.pid) in trouble.what
    assert watch.pids() == [one.identity["pid"]]
