"""A loss that is no number on one rank: no rank takes the step, and the lines of the data that did it are named."""

import json

import torch

from minimind.batches import Order
from minimind.rundir import RunDir
from tests.support import corpus
from tests.support.corpus import TINY

POISON = """
from minimind.stages.pretrain import Pretrain
real = Pretrain.loss
def loss(self, forward, batch):
    summed, count, told = real(self, forward, batch)
    return (summed * float("nan") if SAMPLE in batch.numbers else summed), count, told
Pretrain.loss = loss
"""
"""One text has a loss that is not a number."""


def parameters(run: RunDir, step: int) -> dict[str, torch.Tensor]:
    return torch.load(run.checkpoints / f"step-{step:08d}" / "parameters.pt", weights_only=True)


def test_all_ranks_skip_the_step_and_the_run_ends_with_step_and_lines_after_too_many(tmp_path, forker):
    folder = corpus.make(tmp_path, samples=12)
    path = folder / "dataset" / "pretrain_hq.jsonl"
    first, rest = path.read_text().split("\n", 1)
    path.write_text(f"{first}\n\n{rest}")
    order = Order(samples=12, batch_size=1, micro_batches_per_step=2, epochs=2, seed=42)
    sample = int(order.step(3).micro_batches[1][0])  # the second rank computes it
    line, poison = sample + 2 if sample else 1, POISON.replace("SAMPLE", str(sample))
    flags = (*TINY, "--from_weight", "none", "--batch_size", "1", "--accumulation_steps", "1", "--epochs", "2")
    keep = ("--save_interval", "1", "--keep_checkpoints", "99", "--skip_bad_lines", "1")
    forker.start(folder, "pretrain", *flags, *keep, "--max_bad_steps", "2", run="skip", nproc=2, before=poison)
    forker.wait()
    run = RunDir(folder / "runs" / "skip")
    bad = [line["step"] for line in corpus.metrics(run.root) if line["loss"] is None]
    assert len(bad) == 2 and bad[0] == 3, forker.log.read_text()
    before, after = parameters(run, bad[0] - 1), parameters(run, bad[0])
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert any(not torch.equal(after[name], parameters(run, bad[0] + 1)[name]) for name in after)

    forker.start(folder, "pretrain", *flags, *keep, "--max_bad_steps", "1", run="stop", nproc=2, before=poison)
    forker.wait()
    run = RunDir(folder / "runs" / "stop")
    told = json.loads((run.attempt(1) / "outcome.json").read_text())
    assert (told["reason"], told["last_step"]) == ("nan_loss", bad[0])
    assert f"step 3 read lines {line} of the data" in told["why"]


def poisoned_to_the_end(folder, forker, *more, run, steps=4):
    """A run of one rank whose last ``steps - 2`` steps are not finite."""
    sound = Order(samples=12, batch_size=1, micro_batches_per_step=1, epochs=1, seed=42)
    bad = [int(sound.step(number).micro_batches[0][0]) for number in range(3, steps + 1)]
    poison = POISON.replace("SAMPLE in batch.numbers", f"set({bad}) & set(batch.numbers.tolist())")
    flags = (*TINY, "--from_weight", "none", "--batch_size", "1", "--accumulation_steps", "1", "--epochs", "1")
    forker.start(folder, "pretrain", *flags, *more, run=run, nproc=1, before=poison)
    forker.wait()
    return RunDir(folder / "runs" / run)


def test_a_run_that_ends_for_such_steps_leaves_a_checkpoint_of_the_last_step_that_changed_anything(tmp_path, forker):
    folder = corpus.make(tmp_path, samples=12)
    run = poisoned_to_the_end(folder, forker, "--max_bad_steps", "2", "--save_interval", "1000", run="ended")
    told = json.loads((run.attempt(1) / "outcome.json").read_text())
    assert (told["reason"], told["last_step"]) == ("nan_loss", 4)
    assert run.checkpoint_steps() == [2] and "The checkpoint of step 2 is sound" in told["remedy"]
    twin = poisoned_to_the_end(folder, forker, "--max_steps", "2", run="twin")
    before, after = parameters(twin, 2), parameters(run, 2)
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_a_last_step_that_is_skipped_costs_a_warning_and_not_the_run(tmp_path, forker):
    folder = corpus.make(tmp_path, samples=12)
    run = poisoned_to_the_end(folder, forker, "--max_steps", "3", run="skipped")
    assert json.loads((run.attempt(1) / "outcome.json").read_text())["status"] == "done", forker.log.read_text()
    assert "in the last 1 steps of the run; these are the weights of step 2" in forker.log.read_text()
    assert all(torch.isfinite(value).all() for value in parameters(run, 3).values())
    assert (folder / "out" / "pretrain_64.pth").is_file()


def test_weights_that_are_not_finite_take_no_checkpoints_place(tmp_path, forker):
    folder = corpus.make(tmp_path, samples=12)
    breaks = """
import torch
from minimind import loop
real = loop.one_step
def one_step(config, attempt, ranks, state, *more):
    told = real(config, attempt, ranks, state, *more)
    if state.step == 3:
        with torch.no_grad():
            state.model.model.norm.weight[0] = float("inf")
    return told
loop.one_step = one_step
"""
    flags = (*TINY, "--from_weight", "none", "--batch_size", "1", "--accumulation_steps", "1", "--epochs", "1")
    keep = ("--save_interval", "1", "--keep_checkpoints", "1")
    forker.start(folder, "pretrain", *flags, *keep, run="broken", nproc=1, before=breaks)
    forker.wait()
    run = RunDir(folder / "runs" / "broken")
    told = json.loads((run.attempt(1) / "outcome.json").read_text())
    assert told["reason"] == "nan_loss" and "model.norm.weight" in told["what"]
    assert run.checkpoint_steps()[-1] == 2
