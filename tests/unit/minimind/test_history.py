"""What earlier runs tell: how fast one rank was, so that more of them can be held against it."""

import json
import re

import pytest

from minimind import history
from minimind.flags import parse
from tests.support import corpus
from tests.support.corpus import TINY

FLAGS = (*TINY, "--batch_size", "3", "--from_weight", "none", "--epochs", "2", "--accumulation_steps", "1")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return corpus.make(tmp_path_factory.mktemp("history"))


def test_two_ranks_say_their_efficiency_where_one_rank_was_recorded(forker, folder):
    def last_words(run, nproc):
        forker.train(folder, "pretrain", *FLAGS, run=run, nproc=nproc)
        (line,) = re.findall(r"[\d,]+ tokens/s over \d+ steps.*", forker.log.read_text())
        return line

    assert "one rank" not in last_words("alone", 0)
    assert re.search(r"\d\.\d\d times one rank \(alone\): \d+% efficient", last_words("two", 2))


def read(folder, run="alone"):
    (*_, newest) = sorted((folder / "runs" / run / "ckpt").iterdir())
    return json.loads((newest / "state.json").read_bytes())["identity"]


def test_a_run_on_another_device_and_the_run_itself_do_not_count(folder):
    config, identity = parse("pretrain", [*FLAGS, "--run_dir", str(folder / "runs" / "next")]), read(folder)
    found, name = history.rate("pretrain", config, 1, read=identity, computed_on="cpu")
    assert name == "alone" and found > 0
    assert history.rate("pretrain", config, 1, read=identity, computed_on="NVIDIA H100 80GB HBM3") == (None, None)
    assert history.rate("pretrain", config, 1, read=identity, computed_on="cpu", but="alone") == (None, None)


@pytest.mark.parametrize(
    "other",
    [
        ("--hidden_size", "80"),
        ("--use_compile",),
        ("--max_tokens_per_batch", "100"),
        ("--dropout", "0.1"),
        ("--deterministic",),
        ("--no-pack",),
    ],
)
def test_a_run_of_other_work_does_not_count(folder, other):
    config = parse("pretrain", [*FLAGS, *other, "--run_dir", str(folder / "runs" / "next")])
    assert history.rate("pretrain", config, 1, read=read(folder)) == (None, None)


@pytest.mark.parametrize("name", ["data_sha256", "tokenizer_sha256"])
def test_a_run_over_other_texts_does_not_count(folder, name):
    config = parse("pretrain", [*FLAGS, "--run_dir", str(folder / "runs" / "next")])
    assert history.rate("pretrain", config, 1, read=read(folder))[1] == "alone"
    assert history.rate("pretrain", config, 1, read={**read(folder), name: "0" * 64}) == (None, None)
    assert history.rate("pretrain", config, 1, read=None)[1] == "alone"


def test_ranks_that_shard_the_model_are_not_held_against_ranks_that_do_not_but_one_rank_is_the_same(folder):
    config = parse("pretrain", [*FLAGS, "--parallel", "fsdp", "--run_dir", str(folder / "runs" / "next")])
    assert history.rate("pretrain", config, 1, read=read(folder))[1] == "alone"
    assert history.rate("pretrain", config, 2, read=read(folder)) == (None, None)
