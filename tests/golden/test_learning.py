"""Stages learn what their data holds, seen on lines they were not trained on; `bench/learning.py` does it for all."""

import random

import pytest

from minimind import checkpoint, evaluate, shards, tokenizer
from tests.support import corpus
from tests.support.corpus import TINY, phrase, turn

GOOD, BAD = "模型 学习 很好", "hello the cat"


def polite(samples, seed):
    rng = random.Random(seed)
    asked = [turn("user", phrase(rng, 2, 9)) for _ in range(samples)]
    sides = {"chosen": GOOD, "rejected": BAD}
    return [{side: [ask, turn("assistant", phrase(rng, 1, 4) + end)] for side, end in sides.items()} for ask in asked]


pytestmark = pytest.mark.soak  # `make demo` fails unless its model answers


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = corpus.make(tmp_path_factory.mktemp("learning"))
    corpus.write_jsonl(folder / "dataset" / "pretrain_hq.jsonl", corpus.texts(240))
    corpus.write_jsonl(folder / "dataset" / "dpo.jsonl", polite(96, seed=1))
    corpus.write_jsonl(folder / "held_out_texts.jsonl", corpus.texts(40, seed=77))
    corpus.write_jsonl(folder / "held_out_pairs.jsonl", polite(60, seed=78))
    return folder


def measured(folder, weights, name, number):
    words = tokenizer.load(folder / "out" / "tokenizer")
    model = checkpoint.load_model(folder / "out" / f"{weights}_64.pth").eval()
    path = folder / name
    data = shards.load(path, evaluate.kind_of(path), words, fallback=folder, say=lambda text: None)
    return evaluate.measure(model, data, max_seq_len=512)[number]


def test_pretraining_lowers_the_loss_of_held_out_texts_and_preferences_rank_held_out_pairs(folder):
    flags = (*TINY, "--batch_size", "16", "--accumulation_steps", "1")
    corpus.train_here(folder, "pretrain", *flags, "--epochs", "1", "--max_steps", "1", "--learning_rate", "0", run="a")
    untrained = measured(folder, "pretrain", "held_out_texts.jsonl", "loss")
    corpus.train_here(folder, "pretrain", *flags, "--epochs", "4", "--learning_rate", "5e-3", run="b")
    trained = measured(folder, "pretrain", "held_out_texts.jsonl", "loss")
    assert untrained > 5.5 and trained < 4.5, (untrained, trained)
    before = measured(folder, "pretrain", "held_out_pairs.jsonl", "accuracy")
    rate = ("--learning_rate", "1e-3", "--beta", "1", "--epochs", "4", "--from_weight", "pretrain")
    lines = corpus.train_here(folder, "dpo", *flags, *rate, run="c")
    after = measured(folder, "rlhf", "held_out_pairs.jsonl", "accuracy")
    assert before < 0.8 and after > 0.9, (before, after)
    assert lines[-1]["accuracy"] > 0.9 and lines[-1]["margin"] > 0
