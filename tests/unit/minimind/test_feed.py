"""Batches that are assembled ahead are the same ones in the same order, and looking on changes no number."""

import json
import threading
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from minimind import feed, fitting, shards, tokenizer
from minimind.batches import Order, Reader
from minimind.config import UsageError
from minimind.dist import World
from minimind.feed import Feed
from minimind.flags import parse
from minimind.passes import passes_of, shares
from minimind.rundir import RunError
from tests.support import corpus
from tests.support.corpus import TINY

ALONE = World(rank=0, size=1, local_rank=0, device=torch.device("cpu"))
FLAGS = (*TINY, "--batch_size", "3", "--accumulation_steps", "2", "--from_weight", "none")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return corpus.make(tmp_path_factory.mktemp("feed"))


@pytest.fixture(scope="module")
def data(folder):
    words = tokenizer.load(folder / "out" / "tokenizer")
    path = folder / "dataset" / "pretrain_hq.jsonl"
    return shards.load(path, "text", words, fallback=folder, say=lambda text: None)


def state_of(data, *, most=None, weigh=None):
    reader = Reader(data, max_seq_len=64, pack=True, max_tokens_per_batch=most, weigh=weigh)
    order = Order(samples=len(reader.usable), batch_size=3, micro_batches_per_step=2, epochs=2, seed=4)
    return SimpleNamespace(reader=reader, order=order)


@pytest.fixture
def ahead(monkeypatch):
    monkeypatch.setitem(feed.AHEAD, "cpu", 2)


def feeders():
    return [thread for thread in threading.enumerate() if thread.name.startswith("feed")]


def test_a_thread_gives_the_same_steps_in_the_same_order(data, monkeypatch):
    state = state_of(data, most=80)
    with Feed(state, ALONE, last=state.order.total_steps) as own:
        expected = [own.take(number) for number in range(1, state.order.total_steps + 1)]
    assert not feeders()
    monkeypatch.setitem(feed.AHEAD, "cpu", 2)
    with Feed(state, ALONE, last=state.order.total_steps) as thread:
        for ready in expected:
            found = thread.take(ready.step.number)
            assert (found.count, found.tokens, found.targets) == (ready.count, ready.tokens, ready.targets)
            assert (found.positions, found.pairs) == (ready.positions, ready.pairs)
            assert len(found.passes) == len(ready.passes) > 1
            for one, other in zip(found.passes, ready.passes, strict=True):
                assert torch.equal(one.batch.ids, other.batch.ids) and torch.equal(one.batch.select, other.batch.select)
        assert len(feeders()) == 1
    assert not feeders()


@pytest.mark.usefixtures("ahead")
def test_a_fault_of_the_data_is_raised_at_its_own_step_and_not_before(data):
    broken = threading.Event()

    def weigh(ids, flags):
        if broken.is_set():
            raise OSError(5, "Input/output error")
        return flags & shards.TARGET

    state = state_of(data, weigh=weigh)
    with Feed(state, ALONE, last=8) as thread:
        thread.take(1)
        while any(not future.done() for _, future in thread.begun):
            pass
        broken.set()  # steps 2 and 3 were read before
        assert thread.take(2).tokens and thread.take(3).tokens
        with pytest.raises(OSError, match="Input/output"):
            thread.take(4)
    assert not feeders()


@pytest.mark.usefixtures("ahead")
def test_leaving_in_the_middle_of_a_step_waits_for_that_step_alone(data):
    begun, go, asked = threading.Event(), threading.Event(), []

    def weigh(ids, flags):
        if len(asked) >= 2:  # behind the first step's two passes
            begun.set()
            assert go.wait(30)
        asked.append(1)
        return flags & shards.TARGET

    with Feed(state_of(data, weigh=weigh), ALONE, last=8) as thread:
        thread.take(1)
        assert begun.wait(30)
        threading.Timer(0.1, go.set).start()
    assert not feeders() and len(asked) == 4, "the step after the next was never begun"


@pytest.mark.usefixtures("ahead")
def test_a_step_out_of_turn_is_assembled_afresh(data):
    state = state_of(data)
    with Feed(state, ALONE, last=8) as thread:
        thread.take(1)
        assert thread.take(5).step.number == 5 and thread.take(2).step.number == 2


@pytest.fixture(scope="module")
def plain(folder):
    return corpus.train_here(folder, "pretrain", *FLAGS, "--epochs", "3", run="plain")


def numbers(lines):
    return [(line["loss"], line["grad_norm"], line["lr"], line["tokens"], line["targets"]) for line in lines]


@pytest.mark.usefixtures("ahead")
def test_training_fed_by_a_thread_gives_the_same_numbers(folder, plain):
    assert numbers(corpus.train_here(folder, "pretrain", *FLAGS, "--epochs", "3", run="fed")) == numbers(plain)


def test_a_profile_changes_no_number_and_opens_as_a_chrome_trace(folder, plain, capsys):
    lines = corpus.train_here(folder, "pretrain", *FLAGS, "--epochs", "3", "--profile", run="profiled")
    assert numbers(lines) == numbers(plain) and len(lines) > 8
    (path,) = (folder / "runs" / "profiled" / "profile").iterdir()
    assert path.name == "steps-00000004-00000008.json" and path.stat().st_mode & 0o777 == 0o600
    events = json.loads(path.read_text())["traceEvents"]
    assert sum("AdamW.step" in event.get("name", "") for event in events) == 5
    told = capsys.readouterr().out
    assert f"trace of steps 4 to 8: {path}" in told and "ui.perfetto.dev" in told


def test_a_run_too_short_for_a_trace_says_so_and_one_that_ends_within_it_keeps_what_there_is(folder, capsys):
    corpus.train_here(folder, "pretrain", *FLAGS, "--epochs", "2", "--profile", "--max_steps", "3", run="short")
    assert "no trace: it begins after 3 steps, and this attempt had 3" in capsys.readouterr().out
    assert not (folder / "runs" / "short" / "profile").exists()
    corpus.train_here(folder, "pretrain", *FLAGS, "--epochs", "2", "--profile", run="short")  # goes on: 4 to 8
    assert (folder / "runs" / "short" / "profile" / "steps-00000007-00000008.json").exists()


def test_a_trace_that_cannot_be_written_is_told_and_the_training_goes_on(folder, plain, capsys):
    run = folder / "runs" / "blocked"
    run.mkdir(parents=True)
    (run / "profile").write_text("a file where the folder is to be")
    lines = corpus.train_here(folder, "pretrain", *FLAGS, "--epochs", "3", "--profile", run="blocked")
    assert numbers(lines) == numbers(plain)
    assert "warning: the trace could not be written" in capsys.readouterr().out


def test_auto_without_a_gpu_is_a_usage_paragraph_before_anything_is_read(folder):
    with pytest.raises(UsageError) as refused:
        corpus.train_here(folder, "pretrain", *FLAGS, "--max_tokens_per_batch", "auto", run="refused")
    assert "needs a GPU" in refused.value.what and "plan" in refused.value.remedy


@pytest.mark.parametrize("value", ["automatic", "0", "-5", "1.5"])
def test_a_bound_that_is_neither_a_number_nor_auto_is_refused(value):
    with pytest.raises(UsageError):
        parse("pretrain", ["--max_tokens_per_batch", value])
    assert parse("pretrain", ["--max_tokens_per_batch", "auto"]).max_tokens_per_batch == "auto"
    assert parse("pretrain", ["--max-tokens-per-batch=77"]).max_tokens_per_batch == 77


@pytest.mark.parametrize("room", [100, 511, 512, 513, 4_000, 99_999, 100_000, 10**9])
def test_the_bound_found_is_the_largest_that_fits_to_5_percent(room):
    tried = []

    def fits(most):
        tried.append(most)
        return (100_000 if most is None else most) <= room

    found = fitting.bisect(fits, least=512, most=100_000)
    if room >= 100_000:
        assert found is None and tried == [None]
    elif room < 512:
        assert found == 512, "a longest sample cannot be split: the run itself says that memory is full"
    else:
        assert found <= room < found * 1.06 and len(tried) < 20


def test_the_heaviest_pass_is_looked_for_with_its_padding(data):
    reader = state_of(data).reader
    lengths = reader.lengths[reader.usable]
    longest, shorts = int(lengths.argmax()), np.argsort(lengths)[:6]
    mixed, even = np.array([longest, *shorts]), np.argsort(lengths)[6:9]
    group = fitting.heaviest(reader, [even, mixed], None)
    assert sorted(group) == sorted(reader.usable[mixed])


def test_memory_that_cannot_be_pinned_is_copied_as_it_is(data, monkeypatch):
    def refuse(self, device=None):
        raise RuntimeError("cannot pin")

    state = state_of(data)
    (one, *_) = passes_of(state, state.order.step(1), ALONE)
    monkeypatch.setattr(torch.Tensor, "pin_memory", refuse)
    assert torch.equal(one.pinned().batch.ids, one.batch.ids)


def test_what_cuts_a_mixture_s_passes_may_not_change_on_a_resume_where_it_decides_what_is_learned(folder):
    flags = (*FLAGS, "--use_moe", "1", "--epochs", "1", "--save_interval", "1", "--arch")
    for arch, refused in (("minimind2", False), ("minimind3", True)):
        corpus.train_here(folder, "pretrain", *flags, arch, "--max_steps", "2", run=f"cut-{arch}")
        again = lambda arch=arch: corpus.train_here(  # noqa: E731
            folder, "pretrain", *flags, arch, "--max_steps", "3", "--max_tokens_per_batch", "60", run=f"cut-{arch}"
        )
        if refused:
            with pytest.raises(RunError, match="not the training") as told:
                again()
            assert "--max_tokens_per_batch was None, is 60" in told.value.why
            with pytest.raises(UsageError, match="mixture of experts"):
                corpus.train_here(folder, "pretrain", *flags, arch, "--max_tokens_per_batch", "auto", run="auto")
        else:
            assert [line["step"] for line in again()] == [1, 2, 3]


@pytest.mark.parametrize("kind", ["text", "pair"])
def test_ranks_share_every_step_by_tokens_and_none_has_more_than_it_must(folder, kind):
    words = tokenizer.load(folder / "out" / "tokenizer")
    rng = np.random.default_rng(3)
    texts = ["word " * int(count) for count in rng.lognormal(2.5, 0.85, 600).clip(1, 100)]
    talk = lambda text: [{"role": "user", "content": "q"}, {"role": "assistant", "content": text}]  # noqa: E731
    lines = [{"text": text} if kind == "text" else {"chosen": talk(text), "rejected": talk("no")} for text in texts]
    path = folder / f"uneven-{kind}.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    data = shards.load(path, kind, words, fallback=folder, say=lambda text: None)
    reader = Reader(data, max_seq_len=512, pack=True, max_tokens_per_batch=None)
    order = Order(samples=len(reader.usable), batch_size=16, micro_batches_per_step=8, epochs=1, seed=4)
    for ranks in (1, 2, 3, 5, 8):
        waited = {True: 0, False: 0}  # places that the other ranks could have computed meanwhile
        for number in range(1, order.total_steps + 1):
            step = order.step(number)
            whole = np.concatenate(step.micro_batches)
            for reader.by_tokens in (True, False):
                dealt = [np.concatenate([*mine, whole[:0]]) for mine in shares(reader, step, ranks)]
                assert sorted(np.concatenate(dealt)) == sorted(whole)
                loads = [int(reader.places(mine).sum()) for mine in dealt]
                assert sum(loads) == sum(reader.computed(mine)[0] for mine in step.micro_batches)
                waited[reader.by_tokens] += max(loads) * ranks - sum(loads)
        assert waited[True] <= 0.2 * waited[False]


def test_joined_micro_batches_hold_the_same_samples_and_learn_the_same(folder, plain, data, monkeypatch):
    state = state_of(data)
    step = state.order.step(2)
    apart = [set(one.batch.numbers) for one in passes_of(state, step, ALONE)]
    state.reader.joins = True
    (joined,) = passes_of(state, step, ALONE)
    assert len(apart) == 2 and set(joined.batch.numbers) == set.union(*apart)

    def find(reader, parts, ranks, *, attempt, clear, **more):
        attempt(reader.build(fitting.heaviest(reader, parts, None)))
        clear()
        return 150

    monkeypatch.setattr(fitting, "refuse", lambda ranks, **_: None)
    monkeypatch.setattr(fitting, "find", find)
    lines = corpus.train_here(
        folder, "pretrain", *FLAGS, "--epochs", "3", "--max_tokens_per_batch", "auto", run="joined"
    )
    for ours, theirs in zip(lines, plain, strict=True):
        assert ours["loss"] == pytest.approx(theirs["loss"], rel=1e-6)
        assert (ours["tokens"], ours["targets"], ours["lr"]) == (theirs["tokens"], theirs["targets"], theirs["lr"])
