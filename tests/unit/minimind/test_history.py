"""What earlier runs tell: how fast one rank was, so that more of them can be held against it."""

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


def test_a_run_on_another_device_and_the_run_itself_do_not_count(folder):
    config = parse("pretrain", [*FLAGS, "--run_dir", str(folder / "runs" / "next")])
    found, name = history.rate("pretrain", config, 1, computed_on="cpu")
    assert name == "alone" and found > 0
    assert history.rate("pretrain", config, 1, computed_on="NVIDIA H100 80GB HBM3") == (None, None)
    assert history.rate("pretrain", config, 1, computed_on="cpu", but="alone") == (None, None)
    wider = parse("pretrain", [*FLAGS, "--hidden_size", "80", "--run_dir", str(folder / "runs" / "next")])
    assert history.rate("pretrain", wider, 1, computed_on="cpu") == (None, None)
