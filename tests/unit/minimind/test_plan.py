"""A plan says beforehand what a training does: compared with trainings that ran, and without torch."""

import contextlib
import json
import pathlib
import subprocess
import sys

import numpy as np
import pytest

from minimind import flags, lora, plan, room, sizes, survey, tokenizer
from minimind.config import CannotTrain, ModelConfig
from minimind.durable import sha256_file
from minimind.model import MiniMind
from minimind.order import Order
from minimind.rundir import RunError, RunSpec
from tests.support import corpus
from tests.support.corpus import TINY

WITHOUT = """
import sys
class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {names!r}:
            raise ImportError(name + " is not here")
sys.meta_path.insert(0, Refuse())
from minimind.__main__ import main
sys.exit(main(sys.argv[1:]))
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    made = corpus.make(tmp_path_factory.mktemp("plan"), samples=50)
    corpus.train_here(made, "pretrain", *TINY, "--epochs", "1", run="base")
    (made / "out" / "pretrain_64.pth").rename(made / "out" / "base_64.pth")
    corpus.train_here(made, "pretrain", "--arch", "minimind3", *TINY, "--epochs", "1", run="base3")
    (made / "out" / "pretrain_64.pth").rename(made / "out" / "base3_64.pth")
    return made


def ask(folder, stage, *words, nproc=1, **options):
    with contextlib.chdir(folder):
        config = flags.parse(stage, words)
        found = survey.survey(stage, config, nproc=nproc, say=lambda text: None, **options)
        found["warnings"] = plan._warnings(found)
        return found


def apart(names, folder, *words):
    return subprocess.run(
        [sys.executable, "-c", WITHOUT.format(names=set(names)), *words],
        cwd=folder,
        env=corpus.environ(),
        capture_output=True,
        text=True,
        timeout=120,
    )


def compare(found, lines, run_dir):
    per_epoch = found["steps"]["per_epoch"]
    assert found["steps"]["last"] == len(lines)
    assert found["data"]["exact"]
    for name in ("tokens", "targets"):
        assert sum(line[name] for line in lines[:per_epoch]) == found["data"][name]
    first, last = found["batch"]["learning_rate"]
    assert (lines[0]["lr"], lines[-1]["lr"]) == (first, last)
    assert len(list((run_dir / "ckpt").iterdir())) == min(2, found["steps"]["checkpoints"])
    (checkpoint, *_) = (run_dir / "ckpt").iterdir()
    written_bytes = sum(path.stat().st_size for path in checkpoint.iterdir())
    assert written_bytes == pytest.approx(found["disk"]["checkpoint_bytes"], rel=0.1)
    (weights,) = (run_dir / "export").rglob("*.pth")
    assert weights.stat().st_size == pytest.approx(found["disk"]["export_bytes"], rel=0.15)


CASES = {
    "pretrain": ("--epochs", "2", "--batch_size", "8", "--accumulation_steps", "2", "--save_interval", "3"),
    "full_sft": ("--from_weight", "base", "--batch_size", "7", "--epochs", "2", "--max_seq_len", "60"),
    "dpo": ("--from_weight", "base", "--max_seq_len", "56", "--epochs", "1"),
    "lora": ("--from_weight", "base", "--epochs", "1", "--lora_rank", "32"),
}
THIRD = {
    "pretrain3": ("--arch", "minimind3", "--batch_size", "9", "--accumulation_steps", "1", "--max_seq_len", "30"),
    "dpo3": ("--arch", "minimind3", "--from_weight", "base3", "--max_seq_len", "85"),
}


@pytest.mark.parametrize("name", [*CASES, *THIRD])
def test_a_plan_is_what_the_training_then_does(folder, name):
    stage, words = name.rstrip("3"), (*TINY, *{**CASES, **THIRD}[name])
    found = ask(folder, stage, *words)
    lines = corpus.train_here(folder, stage, *words, run=f"compared-{name}")
    compare(found, lines, folder / "runs" / f"compared-{name}")
    assert name != "dpo" or found["data"]["dropped_pairs"], "the cut takes an answer away"


def test_a_plan_for_two_ranks_is_what_two_ranks_do_and_the_trainer_says_the_same_lines(folder, forker):
    words = (*TINY, "--batch_size", "4", "--accumulation_steps", "3", "--save_interval", "100")
    found = ask(folder, "pretrain", *words, nproc=2)
    compare(found, forker.train(folder, "pretrain", *words, run="two", nproc=2), folder / "runs" / "two")
    told = forker.log.read_text()
    assert found["summary"].replace("2 ranks", "2 x cpu") in told
    (interval,) = found["notes"]
    assert "save_interval 100 exceeds the" in interval and interval in told


def test_what_keeps_the_step_equal_at_another_number_of_ranks_does(folder):
    alone = ("--batch_size", "4", "--accumulation_steps", "4")
    for words, nproc in ((alone, 2), (alone, 4), (("--batch_size", "8", "--accumulation_steps", "1"), 4)):
        equal = ask(folder, "pretrain", *TINY, *words, nproc=nproc)["batch"]["same_step"]
        changed = [*words, *(text for key, value in equal.items() for text in (f"--{key}", str(value)))]
        with_one, with_more = (
            Order(
                samples=50,
                batch_size=config.batch_size,
                micro_batches_per_step=config.accumulation_steps * ranks,
                epochs=1,
                seed=42,
            )
            for config, ranks in ((flags.parse("pretrain", words), 1), (flags.parse("pretrain", changed), nproc))
        )
        assert with_one.total_steps == with_more.total_steps
        for number in range(1, with_one.total_steps + 1):
            one, more = (np.concatenate(order.step(number).micro_batches) for order in (with_one, with_more))
            assert (one == more).all()
    assert (
        ask(folder, "pretrain", *TINY, "--batch_size", "5", "--accumulation_steps", "1", nproc=2)["batch"]["same_step"]
        is None
    )


@pytest.mark.parametrize("arch", ["minimind2", "minimind3"])
@pytest.mark.parametrize("moe", [False, True])
@pytest.mark.parametrize(("hidden", "layers"), [(64, 2), (192, 3), (768, 1)])
def test_parameters_are_those_of_the_model(arch, moe, hidden, layers):
    config = ModelConfig.for_arch(arch, hidden_size=hidden, num_hidden_layers=layers, vocab_size=500, use_moe=moe)
    assert sizes.parameters(config) == sum(p.numel() for p in MiniMind(config).parameters())
    for targets in ("square", "all", "v_proj, down_proj"):
        model = MiniMind(config)
        lora.inject(model, rank=4, targets=targets)
        trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
        assert sizes.adapter_parameters(config, rank=4, targets=targets) == trained


def test_a_training_too_large_for_this_machine_is_warned_of_with_the_figures(folder, monkeypatch):
    words = (*TINY, "--from_weight", "base")
    for kind, factor in (("main", 2), ("gpu", 1)):
        for room_bytes, warned in ((None, False), (1 << 40, False), (1000, True)):
            monkeypatch.setattr(survey.room, "available_bytes", lambda device, k=kind, b=room_bytes: (k, b))
            found = ask(folder, "pretrain", *words, nproc=2)
            told = [text for text in found["warnings"] if "memory for" in text]
            assert bool(told) == warned
            assert not warned or plan._gb(factor * found["memory_bytes"]["total"]) in told[0]


def test_the_memory_estimate_is_within_a_factor_of_two_of_what_a_rank_takes(folder):
    # large batches of long texts, so that activations are most of it
    corpus.write_jsonl(folder / "dataset" / "long.jsonl", corpus.texts(24, seed=9, least=400, most=500))
    words = ("--hidden_size", "192", "--num_hidden_layers", "3", "--batch_size", "24", "--accumulation_steps", "1")
    words = (*words, "--data_path", "dataset/long.jsonl", "--max_steps", "1", "--save_dir", "out")
    found = ask(folder, "pretrain", *words)["memory_bytes"]
    code = (
        "import resource, sys; from minimind.__main__ import main; main(sys.argv[1:]);"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, file=sys.stderr)"
    )
    command = [sys.executable, "-c", code, "pretrain", *words, "--run_dir", "runs/measured"]
    done = subprocess.run(command, cwd=folder, env=corpus.environ(), capture_output=True, text=True, timeout=240)
    measured_bytes = int(done.stderr.split()[-1]) * 1024
    print(f"estimated {found['total']}, measured {measured_bytes}")
    assert found["activations"] > found["total"] / 2, "the estimate tests something"
    assert 0.5 < found["total"] / measured_bytes < 2, (found, measured_bytes)


def test_a_plan_needs_no_torch_and_its_flag_check_nothing_but_python(folder):
    words = ("plan", "pretrain", *TINY, "--json")
    done = apart(["torch", "wandb", "safetensors"], folder, *words)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["steps"]["last"] == 1
    bare = ["torch", "numpy", "tokenizers", "jinja2", "click"]
    assert apart(bare, folder, "plan", "pretrain", "--flags_only", "--", "--data_path", "/no/where").returncode == 0
    wrong = apart(bare, folder, "plan", "dpo", "--flags_only", "--json", "--", "--nproc", "2")
    assert wrong.returncode == 2 and "--nproc" in json.loads(wrong.stdout)["error"]["why"]
    told = apart(bare, folder, "plan", "dpo", "--flags_only", "--epoch", "2")
    assert told.returncode == 2 and "did you mean --epochs?" in told.stderr and "Traceback" not in told.stderr


def test_a_plan_that_may_write_nothing_writes_nothing_and_gives_none_before_the_data_is_tokenised(folder):
    data = corpus.write_jsonl(folder / "dataset" / "fresh.jsonl", corpus.texts(9, seed=4))
    words = (*TINY, "--data_path", str(data))
    before = sorted(folder.rglob("*"))
    with pytest.raises(RunError, match="not tokenised yet"):
        ask(folder, "pretrain", *words, read_only=True)
    assert sorted(folder.rglob("*")) == before
    exact = ask(folder, "pretrain", *words)
    before = sorted(folder.rglob("*"))
    again = ask(folder, "pretrain", *words, read_only=True)
    for found in (exact, again):
        found["disk"].pop("free_bytes")  # others write to this disk, too, and take memory
        found["room"].pop("available_bytes")
    assert again == exact
    assert sorted(folder.rglob("*")) == before


def test_a_large_file_is_projected_from_its_beginning_and_left_untokenised(folder, monkeypatch):
    data = corpus.write_jsonl(folder / "dataset" / "large.jsonl", corpus.texts(2000, seed=6))
    words = (*TINY, "--data_path", str(data), "--epochs", "1")
    monkeypatch.setattr(survey, "EXACT_BYTES", 10_000)
    monkeypatch.setattr(survey, "HEAD_BYTES", 30_000)
    projected = ask(folder, "pretrain", *words)
    assert not data.with_name("large.jsonl.shards").exists()
    monkeypatch.undo()
    exact = ask(folder, "pretrain", *words)
    assert projected["summary"].startswith("about ") and not projected["data"]["exact"]
    for name in ("samples", "tokens", "targets", "packed_positions"):
        assert projected["data"][name] == pytest.approx(exact["data"][name], rel=0.1)
    monkeypatch.setattr(survey, "EXACT_BYTES", 10_000)
    assert ask(folder, "pretrain", *words)["data"] == exact["data"], "shards that exist are exact at any size"


def test_a_run_that_is_taken_up_again_is_planned_from_where_it_stands(folder):
    words = (*TINY, "--batch_size", "5", "--accumulation_steps", "1", "--epochs", "2", "--run_dir", "runs/half")
    with contextlib.chdir(folder):
        corpus.train_here(folder, "pretrain", *words[:-2], "--max_steps", "6", run="half")
    found = ask(folder, "pretrain", *words, nproc=4)
    assert (found["steps"]["done"], found["steps"]["left"], found["steps"]["last"]) == (6, 14, 20)
    assert found["batch"]["samples_per_step"] == 5, "the checkpoint's step holds at any number of ranks"


def test_time_comes_from_an_earlier_run_of_the_same_shape_or_from_the_flag(folder):
    words = (*TINY, "--batch_size", "8", "--accumulation_steps", "2", "--epochs", "2", "--save_interval", "3")
    run = folder / "runs" / "20260101-000000-pretrain-abcd"
    run.mkdir()
    spec = RunSpec(run_id=run.name, stage="pretrain", flags=list(words), nproc=3, executor="venv")
    (run / "spec.json").write_bytes(spec.to_json())
    read = {"data_sha256": sha256_file(folder / "dataset" / "pretrain_hq.jsonl")}
    read["tokenizer_sha256"] = tokenizer.load(folder / "out" / "tokenizer").sha256
    (run / "ckpt" / "step-00000003").mkdir(parents=True)
    (run / "ckpt" / "step-00000003" / "state.json").write_text(json.dumps({"identity": read}))
    rates = (1.0, 2.0, 3.0, 0.5e3, 1e3, 9e3)  # the first three are not judged by
    (run / "metrics.jsonl").write_text("".join(f'{{"step": 1, "tokens_per_s": {rate}}}\n' for rate in rates))
    found = ask(folder, "pretrain", *words, nproc=3)
    assert (found["time"]["tokens_per_s"], found["time"]["source"]) == (1e3, run.name)
    assert found["time"]["left_s"] == pytest.approx(2 * found["data"]["tokens"] / 1e3)
    assert ask(folder, "pretrain", *words, nproc=5)["time"]["left_s"] is None
    other = corpus.write_jsonl(folder / "dataset" / "other.jsonl", corpus.texts(50, seed=8, most=80))
    assert ask(folder, "pretrain", *words, "--data_path", str(other), nproc=3)["time"]["left_s"] is None
    assert ask(folder, "pretrain", *words, nproc=5, tokens_per_s=50)["time"]["left_s"] == pytest.approx(
        2 * found["data"]["tokens"] / 50
    )


def test_what_is_certain_to_fail_is_told_as_such(folder):
    nothing = corpus.write_jsonl(
        folder / "dataset" / "asked.jsonl", [{"conversations": [corpus.turn("user", "hello")]}] * 3
    )
    with pytest.raises(CannotTrain, match="learned from"):
        ask(folder, "full_sft", *TINY, "--data_path", str(nothing))
    huge = ("--hidden_size", "65536", "--num_hidden_layers", "4000", "--epochs", "9", "--save_interval", "1")
    found = ask(folder, "pretrain", *huge)
    refused = plan._no_room(found)
    assert refused is not None and "free" in refused.what
    done = apart(["torch"], folder, "plan", "pretrain", *huge, "--json")
    assert done.returncode == 3 and json.loads(done.stdout)["error"]["certain"]
    tight = {**found, "disk": {**found["disk"], "free_bytes": found["disk"]["least_bytes"]}}
    assert plan._no_room(tight) is None
    assert any("--keep_checkpoints" in text for text in plan._warnings(tight))


def test_the_text_for_people_names_the_warnings_first(folder):
    command = [sys.executable, "-m", "minimind", "plan", "pretrain", *TINY, "--nproc", "2"]
    done = subprocess.run(command, cwd=folder, env=corpus.environ(), capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[0].startswith("warning: save_interval 100 exceeds the 1 steps of this run")
    assert "--accumulation_steps 4" in lines[1]
    assert [line.partition(":")[0] for line in lines[3:]] == [
        *("data", "packing", "steps", "learning rate", "model", "memory", "disk", "time"),
    ]
    assert pathlib.Path(folder / "dataset" / "pretrain_hq.jsonl.shards").is_dir()


@pytest.mark.parametrize(
    ("saves", "keep", "held", "to_come", "most"),
    [
        (2, 2, 0, 2, 2),
        (9, 2, 0, 4, 4),
        (2, 2, 2, 2, 4),
        (4, 5, 4, 3, 7),
        (1, 2, 4, 1, 4),
        (0, 2, 3, 0, 3),
        (3, 1, 3, 1, 3),
    ],
)
def test_what_a_resumed_run_still_writes_is_counted_beside_what_lies_there(saves, keep, held, to_come, most):
    disk = sizes.disk(trained=1, exported=0, saves=saves, keep=keep, held=held)
    assert (disk.to_come, disk.checkpoints) == (12 * to_come, 12 * most)


@pytest.mark.parametrize(("device", "bounded"), [("cpu", True), ("cuda", False), ("cuda:1", False), ("auto", True)])
def test_a_plan_bounds_passes_where_the_asked_for_device_does(device, bounded, folder, monkeypatch):
    monkeypatch.setattr(room, "available_bytes", lambda device: ("main", None))
    monkeypatch.setattr(sizes, "pass_tokens", lambda model: 100)
    found = ask(folder, "pretrain", *TINY, "--from_weight", "none", "--batch_size", "8", "--device", device)
    assert (found["pass"]["tokens"] <= 100) is bounded
