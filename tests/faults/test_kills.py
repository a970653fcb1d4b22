"""A training killed again and again, at any moment and on any number of ranks, learns what it would have learned."""

import os
import random
import shutil
import signal
import time

import pytest
import torch

from minimind.durable import verified_files
from minimind.process import kernel_state
from minimind.rundir import RunDir
from tests.support import corpus
from tests.support.corpus import TINY

BASE = ("--from_weight", "base", "--save_interval", "3", "--log_interval", "1000", "--accumulation_steps", "1")
STAGES = {
    "pretrain": ("pretrain", ("--batch_size", "4", "--epochs", "10")),
    "dropout": ("pretrain", ("--batch_size", "4", "--epochs", "10", "--dropout", "0.2")),
    "lora": ("lora", ("--batch_size", "4", "--epochs", "10", "--learning_rate", "1e-2")),
    "dpo": ("dpo", ("--batch_size", "4", "--epochs", "10", "--learning_rate", "1e-4")),
}
SLOW_START_S = 120.0


@pytest.fixture(scope="module")
def folder(tmp_path_factory, forker):
    made = corpus.make(tmp_path_factory.mktemp("kills"))
    forker.train(made, "pretrain", *TINY, "--epochs", "1", "--accumulation_steps", "1", run="base")
    (made / "out" / "pretrain_64.pth").rename(made / "out" / "base_64.pth")
    return made


def numbers(lines):
    return [(line["step"], line["loss"], line["lr"], line["grad_norm"], line["tokens"]) for line in lines]


def all_whole(run: RunDir) -> None:
    """Whatever has a checkpoint's name is one."""
    for step in run.checkpoint_steps():
        assert verified_files(run.checkpoints / f"step-{step:08d}"), f"step {step} is not whole"


def kill_somewhere(forker, folder, stage, flags, run: RunDir, rng: random.Random, *, nproc: int = 0) -> bool:
    """Start it, let it make some steps, kill one rank or all at a moment that is not chosen by the steps."""
    before = len(corpus.metrics(run.root)) if run.metrics.exists() else 0
    pids = forker.start(folder, stage, *flags, run=run.root.name, nproc=nproc)
    size = run.metrics.stat().st_size if run.metrics.exists() else 0
    lines, deadline = rng.randint(1, 9), time.monotonic() + SLOW_START_S
    while time.monotonic() < deadline and kernel_state(pids[0]) not in ("", "Z"):  # it may come to its end
        if run.metrics.exists() and run.metrics.read_bytes()[size:].count(b"\n") >= lines:
            break
        time.sleep(0.001)
    time.sleep(rng.random() * 0.03)
    for pid in pids:
        os.kill(pid, signal.SIGKILL)
    codes = forker.wait()
    assert set(codes) <= {0, -signal.SIGKILL}, (codes, forker.log.read_text())
    killed = -signal.SIGKILL in codes
    all_whole(run)
    return killed and len(corpus.metrics(run.root)) >= before


def campaign(forker, folder, name, kills, seed):
    stage, flags = STAGES[name]
    flags = (*TINY, *BASE, *flags)
    whole = forker.train(folder, stage, *flags, run=f"{name}-whole-{seed}")
    run, rng, killed, rounds = RunDir(folder / "runs" / f"{name}-cut-{seed}"), random.Random(seed), 0, 0
    expected = numbers(whole)
    while killed < kills:
        killed += kill_somewhere(forker, folder, stage, flags, run, rng)
        if run.export.exists():  # it came to its end between two kills: what it wrote counts, and the next begins
            assert numbers(corpus.metrics(run.root)) == expected
            shutil.rmtree(run.root)
            rounds += 1
    done = numbers(forker.train(folder, stage, *flags, run=run.root.name))
    assert done == expected
    weights = [
        torch.load(next((folder / "runs" / r / "export").rglob("*.pth")), weights_only=True)
        for r in (f"{name}-whole-{seed}", run.root.name)
    ]
    assert all(torch.equal(weights[0][key], weights[1][key]) for key in weights[0])


@pytest.mark.parametrize("name", STAGES)
def test_a_training_killed_at_random_moments_gives_the_same_losses_bitwise(forker, folder, name):
    campaign(forker, folder, name, kills=4, seed=7)


@pytest.mark.soak
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("name", STAGES)
def test_fifty_kills_of_each_stage_lose_nothing(forker, folder, name):
    campaign(forker, folder, name, kills=50, seed=23)


WORLDS = [(0, 8, "ddp"), (2, 4, "fsdp"), (4, 2, "ddp"), (0, 8, "ddp")]


def all_worlds_take_part(forker, folder, name, flags, run, rng, *, last_step) -> bool:
    for nproc, accumulation, parallel in WORLDS[:-1]:
        world = (*flags, "--accumulation_steps", str(accumulation), "--parallel", parallel)
        saved = max(run.checkpoint_steps(), default=0)
        while max(run.checkpoint_steps(), default=0) <= saved < last_step - 4 and not run.export.exists():
            kill_somewhere(forker, folder, STAGES[name][0], world, run, rng, nproc=nproc)
    return not run.export.exists()


def through_worlds(forker, folder, name):
    stage, flags = STAGES[name]
    flags = (*TINY, *BASE, *flags, "--batch_size", "1", "--epochs", "5", "--save_interval", "2")
    whole = forker.train(folder, stage, *flags, "--accumulation_steps", "8", run=f"{name}-worlds-whole")
    run, rng = RunDir(folder / "runs" / f"{name}-worlds"), random.Random(name)
    while not all_worlds_take_part(forker, folder, name, flags, run, rng, last_step=len(whole)):
        shutil.rmtree(run.root)  # on a busy machine a kill can come after the end
    done = forker.train(folder, stage, *flags, "--accumulation_steps", "8", run=run.root.name)
    for ours, theirs in zip(done, whole, strict=True):
        assert (ours["tokens"], ours["targets"], ours["lr"]) == (theirs["tokens"], theirs["targets"], theirs["lr"])
        assert ours["loss"] == pytest.approx(theirs["loss"], rel=1e-6)


@pytest.mark.parametrize(
    "name", ["dropout", *(pytest.param(n, marks=pytest.mark.soak) for n in STAGES if n != "dropout")]
)
def test_killed_on_one_two_sharded_and_four_ranks_it_sees_the_same_samples_and_losses(forker, folder, name):
    through_worlds(forker, folder, name)
