"""Ranks that stop, die or are told to leave, under real torchruns: the run ends soon, says who, leaves nobody."""

import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import time

import pytest

from minimind.process import descendants, kernel_state
from minimind.rundir import Reason, RunDir, RunFiles, RunSpec, State, derive
from tests.support import corpus
from tests.support.corpus import TINY

STAGE = (*TINY, "--from_weight", "none", "--batch_size", "4", "--accumulation_steps", "1", "--epochs", "4000")
SHORT = ("--hang_timeout", "10")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return corpus.make(tmp_path_factory.mktemp("hangs"))


@pytest.fixture
def started():
    """Starts processes and leaves none of them or their children behind."""
    children: list[subprocess.Popen] = []

    def start(command, folder):
        child = subprocess.Popen(
            command, cwd=folder, env=corpus.environ(), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        children.append(child)
        return child

    yield start
    for child in children:
        for pid in [*descendants(child.pid), child.pid]:
            if kernel_state(pid) not in ("", "Z"):
                os.kill(pid, signal.SIGKILL)
        child.wait(30)


def supervised(folder, name, *flags, nproc=2) -> tuple[RunDir, list[str]]:
    run = RunDir(folder / "runs" / name)
    run.root.mkdir(parents=True)
    spec = RunSpec(run_id=name, stage="pretrain", flags=[*STAGE, *flags], nproc=nproc, executor="venv")
    run.spec.write_bytes(spec.to_json())
    return run, [sys.executable, "-m", "minimind.supervise", "--run_dir", str(run.root)]


def by_hand(folder, name, *flags, nproc=2) -> tuple[RunDir, list[str]]:
    run = RunDir(folder / "runs" / name)
    return run, corpus.command("pretrain", *STAGE, *flags, "--run_dir", str(run.root), nproc=nproc)


WAYS = {"supervised": supervised, "by hand": by_hand}


def beats(run: RunDir) -> dict[int, dict]:
    found = {}
    for path in run.attempt(1).glob("rank*.beat"):
        try:
            beat = json.loads(path.read_bytes())
        except ValueError:
            continue
        found[beat["rank"]] = beat
    return found


def wait_for(condition, *, timeout_s=240):
    deadline = time.monotonic() + timeout_s
    while not (found := condition()):
        assert time.monotonic() < deadline, "timed out"
        time.sleep(0.05)
    return found


def training(run: RunDir, nproc: int, *, step: int = 3):
    return lambda: len(found := beats(run)) == nproc and all(b["step"] > step for b in found.values()) and found


def ended(run: RunDir) -> dict:
    return json.loads((run.attempt(1) / "exit.json").read_text())


def state(run: RunDir):
    return derive(RunFiles.read(run.root), False, time.time())


def gone(pids) -> bool:
    return all(kernel_state(pid) in ("", "Z") for pid in pids)


@pytest.mark.parametrize(
    ("way", "nproc", "victim"), [("supervised", 2, 1), pytest.param("by hand", 3, 0, marks=pytest.mark.soak)]
)
def test_a_rank_that_is_stopped_ends_the_run_as_hung_and_is_named(folder, started, way, nproc, victim):
    run, command = WAYS[way](folder, f"hung {way}".replace(" ", "-"), *SHORT, nproc=nproc)
    child = started(command, folder)
    ranks = wait_for(training(run, nproc))
    os.kill(ranks[victim]["pid"], signal.SIGSTOP)
    stopped_at, last = time.monotonic(), beats(run)[victim]["step"]
    assert child.wait(120) != 0
    assert time.monotonic() - stopped_at < 60, "not the process group's half hour"
    told = ended(run)
    assert (state(run).state, state(run).reason) == (State.FAILED, Reason.HUNG)
    assert f"rank {victim} (process {ranks[victim]['pid']}) hung" in told["what"], told
    assert f"in step {last}" in told["what"] and "SIGSTOP" in told["why"] and "--hang_timeout" in told["remedy"]
    assert wait_for(lambda: gone(beat["pid"] for beat in ranks.values()), timeout_s=40)


@pytest.mark.soak
def test_a_rank_that_computes_without_end_is_told_from_those_that_wait_for_it(folder, started):
    # a training whose second rank never comes out of reading its samples for step 6
    package = folder / "looping" / "minimind"
    shutil.copytree(corpus.ROOT / "minimind", package)
    path = package / "passes.py"
    path.write_text(
        path.read_text().replace(
            "    passes = []\n", "    passes = []\n    while ranks.rank == 1 and step.number == 6:\n        pass\n"
        )
    )
    run, command = supervised(folder, "looping-run", *SHORT)
    child = subprocess.Popen(
        command,
        cwd=folder,
        env=corpus.environ(PYTHONPATH=str(package.parent)),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        assert child.wait(150) == 6
        told = ended(run)
        assert told["reason"] == Reason.HUNG and told["rank"] == 1
        assert "in step 6, reading its samples" in told["what"] and "computes without end" in told["why"]
    finally:
        child.kill()


@pytest.mark.parametrize(("way", "victim"), [pytest.param("supervised", 1, marks=pytest.mark.soak), ("by hand", 0)])
def test_kill_9_of_a_rank_ends_the_run_within_seconds_and_says_who_died(folder, started, way, victim):
    run, command = WAYS[way](folder, f"killed {way}".replace(" ", "-"))
    child = started(command, folder)
    ranks = wait_for(training(run, 2))
    os.kill(ranks[victim]["pid"], signal.SIGKILL)
    killed_at = time.monotonic()
    assert child.wait(60) != 0
    assert time.monotonic() - killed_at < 30
    told = ended(run)
    assert (state(run).state, state(run).reason) == (State.FAILED, Reason.SIGNAL), told
    assert f"rank {victim}" in told["what"] and (way == "by hand" or "SIGKILL" in told["what"]), told
    assert state(run).last_step == corpus.metrics(run.root)[-1]["step"]
    assert wait_for(lambda: gone(beat["pid"] for beat in ranks.values()), timeout_s=40)


def test_sigterm_to_torchrun_itself_is_one_agreed_step_and_one_checkpoint(folder, started):
    run, command = by_hand(folder, "term")
    child = started(command, folder)
    wait_for(training(run, 2))
    child.terminate()
    child.wait(60)
    outcome = json.loads((run.attempt(1) / "outcome.json").read_text())
    assert outcome["status"] == "stopped"
    assert run.checkpoint_steps() == [outcome["last_step"]] == [corpus.metrics(run.root)[-1]["step"]]
    assert state(run).state is State.STOPPED


@pytest.mark.soak
def test_sigquit_to_the_supervisor_stops_at_once_with_the_true_last_step(folder, started):
    run, command = supervised(folder, "quit", "--save_interval", "7")
    child = started(command, folder)
    ranks = wait_for(training(run, 2, step=16))
    child.send_signal(signal.SIGQUIT)
    assert child.wait(30) == 0
    last = corpus.metrics(run.root)[-1]["step"]
    assert state(run).state is State.STOPPED and state(run).last_step == last
    told, saved = ended(run), run.checkpoint_steps()[-1]
    assert f"the last checkpoint is step {saved}, {last - saved} steps since then are lost" in told["why"]
    assert json.loads(run.beat.read_text())["last_step"] == last
    assert gone(beat["pid"] for beat in ranks.values())
    assert not (pathlib.Path(run.checkpoints) / f"step-{last:08d}").exists() or last == saved
