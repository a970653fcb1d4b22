"""An error in the middle of a training, on one rank or on one of two: the run ends at once, with its reason."""

import json
import os

import pytest
import torch

from minimind import checkpoint
from minimind.durable import is_disk_full, is_gpu_memory_full
from minimind.rundir import RunDir
from tests.support import corpus
from tests.support.corpus import TINY

FLAGS = (*TINY, "--from_weight", "none", "--batch_size", "2", "--accumulation_steps", "1", "--epochs", "2")
BREAK = """
import os, torch
from minimind.stages.pretrain import Pretrain
real, calls = Pretrain.loss, []
def loss(self, forward, batch):
    calls.append(1)
    if len(calls) == 3 and int(os.environ.get("RANK", 0)) == int(os.environ.get("WORLD_SIZE", 1)) - 1:
        raise ERROR
    return real(self, forward, batch)
Pretrain.loss = loss
"""
ERRORS = {
    "torch.OutOfMemoryError('CUDA out of memory. Tried to allocate 2 GiB')": "out_of_gpu_memory",
    "RuntimeError('CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling cublasCreate')": "out_of_gpu_memory",
    "MemoryError()": "oom_killed",
    "KeyError('odd')": "trainer_error",
}
FEED = "from minimind.feed import Feed\ndef take(self, number):\n    raise ValueError('broken')\nFeed.take = take"


@pytest.mark.parametrize("error", ERRORS)
@pytest.mark.parametrize("nproc", [1, 2])
def test_the_run_ends_at_once_with_the_reason_of_the_rank_that_broke(error, nproc, tmp_path, forker):
    folder = corpus.make(tmp_path, samples=24)
    before = BREAK.replace("ERROR", error)
    forker.start(folder, "pretrain", *FLAGS, "--save_interval", "1", run="broken", nproc=nproc, before=before)
    forker.wait()
    run = RunDir(folder / "runs" / "broken")
    told = json.loads((run.attempt(1) / "exit.json").read_text())
    assert (told["reason"], told["last_step"]) == (ERRORS[error], 2), forker.log.read_text()
    assert told["remedy"] and run.checkpoint_steps() == [1, 2]


def test_an_error_of_what_feeds_the_steps_is_told_as_it_is(tmp_path, forker):
    folder = corpus.make(tmp_path, samples=24)
    forker.start(folder, "pretrain", *FLAGS, run="broken", before=FEED)
    assert forker.wait() == [6], forker.log.read_text()
    outcome = json.loads((RunDir(folder / "runs" / "broken").attempt(1) / "outcome.json").read_text())
    assert outcome["reason"] == "trainer_error" and "ValueError: broken" in outcome["what"]


@pytest.mark.parametrize("where", ["prepare", "World.wrap"])
def test_one_of_two_ranks_that_breaks_before_the_first_step_is_told_with_its_reason(where, tmp_path, forker):
    folder = corpus.make(tmp_path, samples=24)
    before = f"""
import os, torch
from minimind import loop
from minimind.dist import World
def broken(*args):
    if int(os.environ["RANK"]) == 1:
        raise torch.OutOfMemoryError("CUDA out of memory")
    return real(*args)
{"real, loop.prepare = loop.prepare, broken" if where == "prepare" else "real, World.wrap = World.wrap, broken"}
"""
    forker.start(folder, "pretrain", *FLAGS, run="broken", nproc=2, before=before)
    forker.wait()
    run = RunDir(folder / "runs" / "broken")
    told = json.loads((run.attempt(1) / "exit.json").read_text())
    assert (told["reason"], told["code"]) == ("out_of_gpu_memory", 6), forker.log.read_text()
    assert not (run.attempt(1) / "outcome.json").exists()


def test_an_exception_that_is_its_own_cause_is_looked_through_once():
    odd = ValueError("odd")
    odd.__cause__ = odd
    first, second = OSError("a"), OSError("b")
    first.__cause__, second.__context__ = second, first
    assert not is_disk_full(odd) and not is_gpu_memory_full(first)


def test_an_error_whose_causes_lead_back_to_itself_is_still_told():
    first, second = RuntimeError("one"), RuntimeError("two")
    first.__cause__, second.__context__ = first, first
    assert not is_disk_full(first) and not is_disk_full(second)
    first.__context__ = OSError(28, "No space left on device")
    assert is_disk_full(second)


def test_what_a_killed_save_left_is_no_obstacle_to_a_process_of_the_same_number(tmp_path):
    run = RunDir(tmp_path / "run")
    left = run.checkpoints / f".step-00000002.{os.getpid()}.tmp"
    left.mkdir(parents=True)
    (left / "parameters.pt").write_bytes(b"half")
    parameters = {"weight": torch.ones(3)}
    checkpoint.save(run, step=2, state={"losses": []}, parameters=parameters, optimizer={}, keep=1)
    found = checkpoint.latest(run, say=print)
    assert found is not None and found.step == 2 and torch.equal(found.parameters["weight"], torch.ones(3))
    assert not left.exists()
