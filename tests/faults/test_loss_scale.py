"""float16 training: gradients are scaled, an overflow lowers the scale and is nobody's fault, a resume keeps it."""

import json
import pathlib

import pytest
import torch

from minimind import precision
from minimind.config import TrainConfig
from minimind.rundir import RunDir, RunError
from tests.support import corpus
from tests.support.corpus import TINY

IN_FLOAT16 = """
from minimind import identity, loop, precision, prepare
for module in (identity, loop, precision, prepare):
    module.computed_in = lambda config, device: "float16"
"""
"""As on a GPU without bfloat16; a CPU computes the same, slowly."""
FLAGS = (*TINY, "--from_weight", "none", "--batch_size", "2", "--accumulation_steps", "2", "--epochs", "4")


def scale_of(run: RunDir, step: int) -> dict:
    return json.loads((run.checkpoints / f"step-{step:08d}" / "state.json").read_text())["loss_scale"]


def train(folder: pathlib.Path, forker, *more: str, run: str, before: str = IN_FLOAT16, nproc: int = 0) -> RunDir:
    forker.start(folder, "pretrain", *FLAGS, *more, run=run, nproc=nproc, before=before)
    forker.wait()
    return RunDir(folder / "runs" / run)


@pytest.mark.parametrize("nproc", [0, 2])
def test_a_float16_training_follows_float32_although_its_first_scale_overflows(tmp_path, forker, nproc):
    folder = corpus.make(tmp_path)
    plain = corpus.metrics(train(folder, forker, run="plain", before="", nproc=nproc).root)
    low = (
        IN_FLOAT16
        + "import torch\nreal = torch.amp.GradScaler\n"
        + ("torch.amp.GradScaler = lambda *a, **k: real(*a, **{**k, 'init_scale': 2.0 ** 20})\n")
    )
    half = train(folder, forker, "--max_bad_steps", "1", run="half", before=low, nproc=nproc)
    lines = corpus.metrics(half.root)
    assert len(lines) == len(plain), forker.log.read_text()
    skipped = [line["step"] for line in lines if line["grad_norm"] is None]
    assert 0 < len(skipped) < len(lines) / 2 and all(line["loss"] is not None for line in lines)
    assert scale_of(half, len(lines))["scale"] == 2.0 ** (20 - len(skipped))
    assert lines[0]["loss"] == pytest.approx(plain[0]["loss"], rel=5e-3)
    learned = [first["loss"] - last["loss"] for first, *_, last in (lines, plain)]
    assert learned[0] > learned[1] / 3 > 0  # some of its steps went to finding the scale


def test_a_resume_goes_on_with_the_scale_and_the_same_losses(tmp_path, forker):
    folder = corpus.make(tmp_path)
    whole = corpus.metrics(train(folder, forker, "--save_interval", "3", run="whole").root)
    train(folder, forker, "--max_steps", "3", run="cut")
    again = train(folder, forker, run="cut")
    assert [line["loss"] for line in corpus.metrics(again.root)] == [line["loss"] for line in whole]
    assert scale_of(again, 3)["_growth_tracker"] == 3


def test_a_loss_that_is_no_number_is_still_a_bad_step():
    config, weight = TrainConfig(), torch.nn.Parameter(torch.ones(2))
    optimizer = torch.optim.SGD([weight], lr=1.0)
    scale = precision.LossScale(config, torch.device("cpu"))
    scale.scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
    for loss, taken in ((float("nan"), (False, False)), (float("inf"), (False, False)), (1.0, (True, False))):
        optimizer.zero_grad()
        scale.apply((weight * loss).sum()).backward()
        scale.undo(optimizer)
        assert scale.settle(optimizer, loss=loss, norm=float(weight.grad.norm())) == taken
    weight.grad = torch.full((2,), torch.inf)
    scale.undo(optimizer)
    assert scale.settle(optimizer, loss=1.0, norm=torch.inf) == (False, False)  # no scale is to blame


@pytest.mark.parametrize(
    ("capability", "asked", "found"),
    [
        ((7, 5), "bfloat16", "float16"),
        ((8, 9), "bfloat16", "bfloat16"),
        ((7, 0), "float32", "float32"),
        ((9, 0), "float16", "float16"),
    ],
)
def test_bfloat16_is_computed_only_where_a_gpu_has_units_for_it(monkeypatch, capability, asked, found):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    assert precision.computed_in(TrainConfig(dtype=asked), torch.device("cuda", 0)) == found
    assert precision.computed_in(TrainConfig(dtype=asked), torch.device("cpu")) == "float32"


def test_sharded_ranks_refuse_float16_and_say_why(monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 5))
    with pytest.raises(RunError, match="cannot train in float16") as refused:
        precision.LossScale(TrainConfig(), torch.device("cuda", 0), sharded=True)
    assert "too old for bfloat16" in refused.value.why
