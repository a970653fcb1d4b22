"""Shards and the order of samples: every sample once an epoch, whatever the ranks, and nothing counted twice."""

import numpy as np
import pytest
import torch

from minimind import shards, tokenizer
from minimind.batches import Order, Reader
from tests.support import corpus


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return corpus.make(tmp_path_factory.mktemp("shards"), samples=23)


@pytest.fixture(scope="module")
def words(folder):
    return tokenizer.load(folder / "out" / "tokenizer")


def load(folder, words, name, kind, **kwargs):
    return shards.load(
        folder / "dataset" / name, kind, words, fallback=folder / "unused", say=lambda text: None, **kwargs
    )


def reader(data, **changes):
    return Reader(data, **{"max_seq_len": 512, "pack": True, "max_tokens_per_batch": None, **changes})


@pytest.mark.parametrize(("samples", "batch", "group"), [(23, 4, 3), (24, 4, 2), (1, 8, 8), (7, 7, 1), (5, 1, 2)])
def test_an_epoch_holds_every_sample_once_and_a_short_last_group_is_stepped(samples, batch, group):
    order = Order(samples=samples, batch_size=batch, micro_batches_per_step=group, epochs=2, seed=1)
    for epoch in (0, 1):
        numbers = range(epoch * order.steps_per_epoch + 1, (epoch + 1) * order.steps_per_epoch + 1)
        steps = [order.step(number) for number in numbers]
        seen = np.concatenate([micro for step in steps for micro in step.micro_batches])
        assert sorted(seen) == list(range(samples)) and {step.epoch for step in steps} == {epoch + 1}
    assert order.step(order.total_steps).last_micro_batch == order.total_micro_batches - 1


def test_epochs_and_seeds_have_orders_of_their_own_and_each_repeats_itself():
    def first(seed, number):
        order = Order(samples=50, batch_size=50, micro_batches_per_step=1, epochs=3, seed=seed)
        return tuple(order.step(number).micro_batches[0])

    assert len({first(1, 1), first(1, 2), first(2, 1)}) == 3 and first(1, 2) == first(1, 2)


def test_packed_and_padded_batches_hold_the_same_targets(folder, words):
    data = load(folder, words, "sft_mini_512.jsonl", "chat")
    samples = np.array([3, 0, 11])
    (packed,), (padded,) = (list(reader(data, pack=p, max_seq_len=64).batches(samples)) for p in (True, False))
    assert torch.equal(packed.targets, padded.targets) and torch.equal(packed.document, padded.document)
    assert packed.tokens == padded.tokens and padded.ids.shape == (3, 63)
    predecessors = [batch.ids.flatten()[batch.select] for batch in (packed, padded)]
    assert torch.equal(*predecessors)


def test_counts_known_before_the_step_are_the_targets_that_batches_hold(folder, words):
    for name, kind in (("sft_mini_512.jsonl", "chat"), ("pretrain_hq.jsonl", "text")):
        for length in (512, 20, 9, 2):
            read = reader(load(folder, words, name, kind), max_seq_len=length)
            samples = np.arange(len(read.usable))
            assert sum(len(b.targets) for b in read.batches(samples)) == read.count(samples) == read.targets(samples)


def test_passes_of_bounded_length_hold_the_same_samples(folder, words):
    data = load(folder, words, "pretrain_hq.jsonl", "text")
    samples = np.arange(23)
    whole = list(reader(data).batches(samples))
    parts = list(reader(data, max_tokens_per_batch=60).batches(samples))
    assert len(whole) == 1 < len(parts) and all(p.tokens <= 60 or p.documents == 1 for p in parts)
    assert torch.equal(whole[0].targets, torch.cat([part.targets for part in parts]))


def test_a_pair_whose_answer_is_cut_away_is_dropped_and_counted(folder, words):
    long = "学习 " * 200
    lines = [
        *corpus.pairs(4),
        {
            "chosen": [corpus.turn("user", long), corpus.turn("assistant", "a")],
            "rejected": corpus.pairs(1)[0]["rejected"],
        },
    ]
    corpus.write_jsonl(folder / "dataset" / "cut.jsonl", lines)
    data = load(folder, words, "cut.jsonl", "pair")
    read = reader(data, max_seq_len=128)
    assert (len(read.usable), read.dropped) == (4, 1) and data.cut(128)["documents"] == 1
    (batch,) = read.batches(np.arange(4))
    assert batch.documents == 8 and set(batch.document.tolist()) == set(range(8))


def test_the_same_content_and_tokenizer_are_tokenised_once_and_another_byte_again(folder, words):
    said = []
    path = corpus.write_jsonl(folder / "once.jsonl", corpus.texts(3))
    for _ in range(2):
        shards.load(path, "text", words, fallback=folder, say=said.append)
    assert len(said) == 1
    path.write_text(path.read_text() + '{"text": "more"}\n')
    assert shards.load(path, "text", words, fallback=folder, say=said.append).samples == 4
    assert [text.split()[0] for text in said] == ["tokenising", "tokenising", "removing"]


def test_shards_that_lost_bytes_are_made_again(folder, words):
    path = corpus.write_jsonl(folder / "torn.jsonl", corpus.texts(3, seed=9))
    whole = shards.load(path, "text", words, fallback=folder, say=lambda text: None)
    expected = whole.ids.tolist()
    with open(whole.folder / "ids.bin", "r+b") as file:
        file.truncate(4)
    assert shards.load(path, "text", words, fallback=folder, say=lambda text: None).ids.tolist() == expected


def test_a_broken_file_leaves_no_shards_behind(folder, words):
    path = folder / "broken.jsonl"
    path.write_text('{"text": "a"}\nno\n')
    with pytest.raises(Exception, match="bad lines"):
        shards.load(path, "text", words, fallback=folder, say=lambda text: None)
    assert [p.name for p in (folder / "broken.jsonl.shards").iterdir()] == ["lock"]
