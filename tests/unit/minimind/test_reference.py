import json
import math
import shutil

import numpy as np
import pytest
import torch

from minimind import probe
from minimind.attention import Padded
from minimind.pulse import Phase
from minimind.stages.dpo import Dpo
from tests.support import corpus
from tests.support.corpus import TINY

FLAGS = (*TINY, "--learning_rate", "1e-3", "--epochs", "1", "--max_steps", "3")


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = corpus.make(tmp_path_factory.mktemp("reference"))
    corpus.train_here(folder, "pretrain", *TINY, "--epochs", "1", "--max_steps", "1", run="base")
    (folder / "out" / "pretrain_64.pth").rename(folder / "out" / "full_sft_64.pth")
    return folder


@pytest.fixture
def folder(trained, tmp_path):
    return shutil.copytree(trained, tmp_path / "copy")


def kept(folder):
    return sorted((folder / "dataset").glob("dpo.jsonl.shards/*/reference-*.npy"))


def losses(lines):
    return [line["loss"] for line in lines]


def test_the_reference_is_scored_once_and_found_by_the_next_run_with_the_same_losses(folder, capsys):
    first = corpus.train_here(folder, "dpo", *FLAGS, run="a")
    assert "48 answers in" in capsys.readouterr().out
    second = corpus.train_here(folder, "dpo", *FLAGS, run="b")
    assert "found beside the data" in capsys.readouterr().out
    assert losses(first) == losses(second)
    corpus.train_here(folder, "dpo", *FLAGS, "--beta", "0.3", "--length_normalised", "0", run="c")
    assert "found beside the data" in capsys.readouterr().out
    assert len(kept(folder)) == 1


def test_other_weights_or_another_cut_are_scored_anew(folder):
    corpus.train_here(folder, "dpo", *FLAGS, run="a")
    corpus.train_here(folder, "dpo", *FLAGS, "--max_seq_len", "60", run="b")
    corpus.train_here(folder, "dpo", *FLAGS, "--from_weight", "rlhf", run="c")
    assert len(kept(folder)) == 3


def test_weights_of_another_seed_are_another_reference(folder):
    first = corpus.train_here(folder, "dpo", *FLAGS, "--from_weight", "none", "--seed", "1", run="a")
    other = corpus.train_here(folder, "dpo", *FLAGS, "--from_weight", "none", "--seed", "2", run="b")
    assert len(kept(folder)) == 2
    for lines in (first, other):  # before the first update the policy is the reference
        assert lines[0]["loss"] == pytest.approx(math.log(2), abs=1e-6) and lines[0]["margin"] == 0


def test_the_reference_attends_in_the_way_that_the_policy_does(folder, monkeypatch):
    seen = []

    class Watched(Padded):
        def __init__(self, *args):
            super().__init__(*args)
            seen.append(torch.is_inference_mode_enabled())

    def choose(config, model, ranks, say):
        model.way = Watched
        return Watched.name

    monkeypatch.setattr(probe, "choose", choose)
    corpus.train_here(folder, "dpo", *FLAGS, run="a")
    assert any(seen) and not all(seen)


@pytest.mark.parametrize("damage", ["cut", "nan", "short", "pickle"])
def test_a_damaged_file_of_scores_is_made_anew(folder, damage):
    wanted = corpus.train_here(folder, "dpo", *FLAGS, run="a")
    (path,) = kept(folder)
    sums = np.load(path)
    if damage == "cut":
        path.write_bytes(path.read_bytes()[:-5])
    elif damage == "pickle":
        np.save(path, np.array([{}], dtype=object), allow_pickle=True)
    else:
        np.save(path, sums[:-1] if damage == "short" else np.full_like(sums, np.nan))
    assert losses(corpus.train_here(folder, "dpo", *FLAGS, run="b")) == losses(wanted)
    assert np.array_equal(np.load(path), sums)


def test_whoever_watches_grants_the_scoring_the_time_of_preparing(folder, monkeypatch):
    found = []
    begin = Dpo.begin

    def watched(self, *args):
        (beat,) = (folder / "runs" / "a").glob("attempts/*/rank0.beat")
        found.append(json.loads(beat.read_bytes())["phase"])
        begin(self, *args)

    monkeypatch.setattr(Dpo, "begin", watched)
    corpus.train_here(folder, "dpo", *FLAGS, run="a")
    assert found == [Phase.PREPARE]


def test_two_ranks_score_what_one_scores(folder, forker):
    forker.train(folder, "dpo", *FLAGS, run="a")
    (path,) = kept(folder)
    alone = path.read_bytes()
    path.unlink()
    forker.train(folder, "dpo", *FLAGS, run="b", nproc=2)
    assert path.read_bytes() == alone
