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
