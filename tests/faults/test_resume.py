"""A training that is killed, stopped or moved to other ranks goes on as if nothing had happened."""

import json
import os
import random
import shutil
import signal
import subprocess
import time

import pytest
import torch

from minimind.durable import verified_files
from minimind.rundir import RunDir, RunError
from tests.support import corpus
from tests.support.corpus import TINY

SAVE_OFTEN = ("--save_interval", "2", "--log_interval", "1000")
STAGES = {
    "pretrain": ("--from_weight", "base", "--batch_size", "4", "--accumulation_steps", "1", "--epochs", "4"),
    "dpo": ("--from_weight", "base", "--batch_size", "3", "--learning_rate", "1e-4"),
    "lora": ("--from_weight", "base", "--batch_size", "4", "--epochs", "4", "--learning_rate", "1e-2"),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    made = corpus.make(tmp_path_factory.mktemp("resume"))
    corpus.train_here(made, "pretrain", *TINY, "--epochs", "1", run="base")
    (made / "out" / "pretrain_64.pth").rename(made / "out" / "base_64.pth")
    state = torch.load(made / "out" / "base_64.pth", weights_only=True)
    state["model.norm.weight"][0] = torch.nan
    torch.save(state, made / "out" / "broken_64.pth")
    return made


def numbers(lines):
    return [(line["step"], line["loss"], line["lr"], line["grad_norm"]) for line in lines]


def kill_after_step(folder, stage, flags, run, step):
    """Start the training and SIGKILL it once metrics.jsonl has ``step``; returns whether it was still alive then."""
    child = subprocess.Popen(
        corpus.command(stage, *flags, "--run_dir", f"runs/{run}"),
        cwd=folder,
        env=corpus.environ(),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.STDOUT,
    )
    path, deadline = folder / "runs" / run / "metrics.jsonl", time.monotonic() + 120
    while child.poll() is None and time.monotonic() < deadline:
        if path.exists() and len(corpus.metrics(path.parent)) >= step:
            break
        time.sleep(0.002)
    child.send_signal(signal.SIGKILL)
    return child.wait() == -signal.SIGKILL


# tests/faults/test_kills.py kills trainers of every stage without the price of a process's start
@pytest.mark.soak
@pytest.mark.parametrize("stage", STAGES)
def test_kill_9_and_resume_equals_the_uninterrupted_run_bitwise(folder, stage):
    flags = (*TINY, *STAGES[stage], *SAVE_OFTEN)
    corpus.train_apart(folder, stage, *flags, run=f"{stage}-whole")
    expected = numbers(corpus.metrics(folder / "runs" / f"{stage}-whole"))
    written = next(p for p in (folder / "runs" / f"{stage}-whole" / "export").rglob("*.pth"))
    weights = torch.load(written, weights_only=True)
    killed = 0
    rng = random.Random(stage)
    for _ in range(2):
        at = rng.randint(1, len(expected) - 2)
        seen = len(corpus.metrics(folder / "runs" / f"{stage}-cut")) if killed else 0
        killed += kill_after_step(folder, stage, flags, f"{stage}-cut", max(at, min(seen + 1, len(expected) - 1)))
    assert killed >= 2, "the training ended before it could be killed"
    corpus.train_apart(folder, stage, *flags, run=f"{stage}-cut")
    assert numbers(corpus.metrics(folder / "runs" / f"{stage}-cut")) == expected
    again = torch.load(
        folder
        / "runs"
        / f"{stage}-cut"
        / "export"
        / written.relative_to(folder / "runs" / f"{stage}-whole" / "export"),
        weights_only=True,
    )
    assert all(torch.equal(weights[name], again[name]) for name in weights)


def close(one, other, rel=1e-6):
    assert len(one) == len(other)
    for a, b in zip(one, other, strict=True):
        assert a["loss"] == pytest.approx(b["loss"], rel=rel)
        assert a["lr"] == b["lr"]
        assert (a["tokens"], a["targets"]) == (b["tokens"], b["targets"])


EVERY_LINEAR = (
    "--lora_targets",
    "all",
    "--lora_rank",
    "3",
    "--lora_name",
    "everywhere",
    "--data_path",
    "dataset/lora_identity.jsonl",
)


@pytest.mark.soak  # gradients of every stage are compared in tests/golden/test_gradients.py
@pytest.mark.parametrize(("stage", "more"), [*((stage, ()) for stage in STAGES), ("lora", EVERY_LINEAR)])
def test_two_ranks_equal_one_rank_with_twice_the_accumulation(folder, forker, stage, more):
    flags, run = (*TINY, *STAGES[stage], "--batch_size", "3", *more), f"{stage}{len(more)}"
    one = corpus.train_here(folder, stage, *flags, "--accumulation_steps", "4", run=f"{run}-1x4")
    close(forker.train(folder, stage, *flags, "--accumulation_steps", "2", run=f"{run}-2x2", nproc=2), one)
    first, second = (
        torch.load(next((folder / "runs" / f"{run}-{n}" / "export").rglob("*.pth")), weights_only=True)
        for n in ("1x4", "2x2")
    )
    assert all(torch.allclose(first[k].float(), second[k].float(), atol=2e-3) for k in first)


def test_ranks_without_a_micro_batch_take_part_and_change_nothing(folder, forker):
    # 24 samples in micro-batches of 23: the second rank of the last group holds one sample, a third would hold none
    flags = (*TINY, *STAGES["pretrain"], "--batch_size", "24", "--epochs", "3")
    one = corpus.train_here(folder, "pretrain", *flags, run="alone")
    close(forker.train(folder, "pretrain", *flags, run="crowded", nproc=2), one)


@pytest.mark.soak  # tests/faults/test_kills.py goes through 1, 2 sharded, 4 and 1 ranks
def test_another_world_size_goes_on_with_the_same_samples_per_step(folder):
    flags = (*TINY, *STAGES["pretrain"], "--batch_size", "2", "--save_interval", "3")
    whole = corpus.train_here(folder, "pretrain", *flags, "--accumulation_steps", "4", run="world-whole")
    corpus.train_here(folder, "pretrain", *flags, "--accumulation_steps", "4", "--max_steps", "3", run="world")
    corpus.train_apart(folder, "pretrain", *flags, "--max_steps", "6", run="world", nproc=2)
    corpus.train_apart(folder, "pretrain", *flags, "--max_steps", "9", run="world", nproc=3)
    corpus.train_here(folder, "pretrain", *flags, run="world")
    close(corpus.metrics(folder / "runs" / "world"), whole, rel=2e-6)


def test_a_stop_file_ends_the_run_at_an_agreed_step_and_it_goes_on_exactly(folder, forker):
    flags = (*TINY, *STAGES["pretrain"], "--batch_size", "2", "--epochs", "8")
    whole = forker.train(folder, "pretrain", *flags, run="unstopped")
    forker.train(folder, "pretrain", *flags, "--max_steps", "2", run="stopped")
    run = RunDir(folder / "runs" / "stopped")
    child = subprocess.Popen(
        corpus.command("pretrain", *flags, "--run_dir", "runs/stopped"), cwd=folder, env=corpus.environ()
    )
    deadline = time.monotonic() + 120
    while len(corpus.metrics(run.root)) < 5 and time.monotonic() < deadline:
        time.sleep(0.002)
    child.send_signal(signal.SIGTERM)
    assert child.wait(60) == 0
    outcome = json.loads((run.attempt(2) / "outcome.json").read_text())
    assert outcome["status"] == "stopped" and outcome["last_step"] == run.checkpoint_steps()[-1] < len(whole)
    assert numbers(forker.train(folder, "pretrain", *flags, run="stopped")) == numbers(whole)


def test_a_damaged_newest_checkpoint_is_named_and_the_one_before_is_used(folder, capsys):
    flags = (*TINY, *STAGES["pretrain"], *SAVE_OFTEN)
    whole = corpus.train_here(folder, "pretrain", *flags, "--max_steps", "6", run="damaged")
    run = RunDir(folder / "runs" / "damaged")
    with open(run.checkpoints / "step-00000006" / "optimizer.pt", "r+b") as file:
        file.seek(100)
        file.write(b"\xff")
    (run.metrics).write_text("")
    capsys.readouterr()
    lines = corpus.train_here(folder, "pretrain", *flags, "--max_steps", "6", run="damaged")
    told = capsys.readouterr().out
    assert "step-00000006 does not match its SHA256SUMS" in told and "resuming after step 4" in told
    assert numbers(lines) == numbers(whole)[4:]
    assert verified_files(run.checkpoints / "step-00000006"), "saved anew"
    corpus.train_here(folder, "pretrain", *flags, "--max_steps", "6", run="damaged")
    assert "warning" not in capsys.readouterr().out


def test_a_model_of_a_shape_that_only_its_starting_weights_had_is_resumed_as_it_was(folder):
    corpus.train_here(folder, "pretrain", *TINY, "--epochs", "1", "--max_steps", "1", run="odd-base")
    odd = folder / "out" / "odd_64.pth"
    shutil.copy(folder / "out" / "pretrain_64.pth", odd)
    sidecar = json.loads((folder / "out" / "pretrain_64.json").read_text())
    sidecar["model"].update(rope_theta=100.0, rms_norm_eps=1e-3)
    odd.with_suffix(".json").write_text(json.dumps(sidecar))
    flags = (*TINY, "--from_weight", str(odd), "--learning_rate", "1e-3", "--epochs", "1")
    whole = corpus.train_here(folder, "full_sft", *flags, "--max_steps", "4", run="odd-whole")
    corpus.train_here(folder, "full_sft", *flags, "--max_steps", "2", run="odd")
    assert numbers(corpus.train_here(folder, "full_sft", *flags, "--max_steps", "4", run="odd")) == numbers(whole)
    assert json.loads((folder / "out" / "full_sft_64.json").read_text())["model"]["rope_theta"] == 100.0


def test_a_run_of_one_stage_is_not_gone_on_with_as_another(folder):
    flags = (*TINY, "--from_weight", "none", "--max_steps", "1")
    corpus.train_here(folder, "full_sft", *flags, run="mixed")
    with pytest.raises(RunError, match="holds a training of full_sft, not of pretrain"):
        corpus.train_here(folder, "pretrain", *flags, run="mixed")


def test_sigterm_before_the_first_step_is_told_in_the_run_directory(folder):
    for moment in ("attempts/1", "attempts/1/rank0.beat"):
        run = RunDir(folder / "runs" / f"early-{moment.count('/')}")
        command = corpus.command("pretrain", *TINY, *STAGES["pretrain"], "--run_dir", str(run.root))
        child = subprocess.Popen(command, cwd=folder, env=corpus.environ(), stderr=subprocess.DEVNULL)
        while not (run.root / moment).exists() and child.poll() is None:
            time.sleep(0.001)
        child.send_signal(signal.SIGTERM)
        assert child.wait(60) != 0
        outcome = json.loads((run.attempt(1) / "outcome.json").read_text())
        assert (outcome["status"], outcome["reason"]) == ("error", "signal")
        assert not run.checkpoints.exists()


def test_no_sound_checkpoint_left_is_an_error_and_never_a_fresh_start(folder):
    flags = (*TINY, *STAGES["pretrain"], *SAVE_OFTEN)
    corpus.train_here(folder, "pretrain", *flags, "--max_steps", "2", run="rotten")
    for path in (folder / "runs" / "rotten" / "ckpt").rglob("parameters.pt"):
        os.truncate(path, 1000)
    with pytest.raises(RunError, match="no checkpoint of rotten can be trusted"):
        corpus.train_here(folder, "pretrain", *flags, run="rotten")


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (("--learning_rate", "1e-3"), "--learning_rate was 0.0005, is 0.001"),
        (("--seed", "7"), "--seed was 42, is 7"),
        (("--data_path", "other.jsonl"), "the data file is another one"),
    ],
)
def test_a_resume_with_another_training_is_refused_and_says_what_changed(folder, change, named):
    flags = (*TINY, *STAGES["pretrain"])
    shutil.copy(folder / "dataset" / "pretrain_hq.jsonl", folder / "other.jsonl")
    with open(folder / "other.jsonl", "a") as file:
        file.write('{"text": "one more"}\n')
    run = f"refused{change[0]}"
    corpus.train_here(folder, "pretrain", *flags, "--max_steps", "2", run=run)
    with pytest.raises(RunError) as refused:
        corpus.train_here(folder, "pretrain", *flags, *change, run=run)
    assert named in refused.value.why


def test_weights_named_on_a_resume_must_be_those_it_began_with_unless_only_their_file_was_made_anew(folder, capsys):
    mine = folder / "out" / "mine_64.pth"
    shutil.copy(folder / "out" / "base_64.pth", mine)
    shutil.copy(mine, folder / "out" / "same_64.pth")
    flags = ("pretrain", *TINY, "--batch_size", "4", "--accumulation_steps", "1", "--epochs", "4")
    corpus.train_here(folder, *flags, "--from_weight", "mine", "--max_steps", "2", run="named")
    with pytest.raises(RunError) as refused:
        corpus.train_here(folder, *flags, "--from_weight", "broken", "--max_steps", "4", run="named")
    assert "began with --from_weight mine, and broken holds other weights" in refused.value.why
    corpus.train_here(folder, *flags, "--from_weight", "same", "--max_steps", "4", run="named")
    shutil.copy(folder / "out" / "broken_64.pth", mine)
    capsys.readouterr()
    corpus.train_here(folder, *flags, "--from_weight", "mine", "--max_steps", "6", run="named")
    assert "mine_64.pth holds other weights than when this training began" in capsys.readouterr().out
    mine.unlink()
    corpus.train_here(folder, *flags, "--from_weight", "mine", "--max_steps", "8", run="named")
    lines = corpus.metrics(folder / "runs" / "named")
    assert [line["step"] for line in lines] == list(range(1, 9)) and all(line["loss"] for line in lines)


def test_from_resume_0_refuses_to_overwrite_and_1_refuses_to_invent(folder):
    flags = (*TINY, *STAGES["pretrain"], "--max_steps", "1")
    with pytest.raises(RunError, match="no checkpoint to resume"):
        corpus.train_here(folder, "pretrain", *flags, "--from_resume", "1", run="asked")
    corpus.train_here(folder, "pretrain", *flags, run="asked")
    with pytest.raises(RunError, match="already holds a checkpoint"):
        corpus.train_here(folder, "pretrain", *flags, "--from_resume", "0", run="asked")


def test_a_second_trainer_on_the_same_run_is_refused_and_the_holder_named(folder):
    flags = (*TINY, *STAGES["pretrain"], "--epochs", "2000")
    command = corpus.command("pretrain", *flags, "--run_dir", "runs/held")
    holder = subprocess.Popen(command, cwd=folder, env=corpus.environ(), stdout=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 60
        while not (folder / "runs" / "held" / "metrics.jsonl").exists() and time.monotonic() < deadline:
            time.sleep(0.05)
        second = corpus.train_apart(folder, "pretrain", *flags, run="held", check=False)
        assert second.returncode != 0
        assert f"held by process {holder.pid}" in second.stderr and "Traceback" not in second.stderr
    finally:
        holder.kill()
        holder.wait()


def test_a_run_whose_last_step_was_not_finite_is_nan_loss_and_writes_no_weights(folder):
    with pytest.raises(RunError) as failed:
        corpus.train_here(
            folder, "pretrain", *TINY, "--from_weight", "broken", "--max_steps", "2", "--max_bad_steps", "9", run="nan"
        )
    assert failed.value.reason == "nan_loss" and not (folder / "runs" / "nan" / "export").exists()
