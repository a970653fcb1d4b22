"""A GPU's way of attending is tried before it is used; nothing that goes wrong in a trial reaches a training."""

import dataclasses
import json

import pytest
import torch

from minimind import attention, probe
from minimind.attention import Dense, Padded, Varlen
from minimind.config import ModelConfig, TrainConfig
from minimind.dist import World
from minimind.model import MiniMind
from tests.support import corpus
from tests.support.corpus import TINY
from tests.support.kernels import gpu_kernels  # noqa: F401

SHAPE = ModelConfig.for_arch("minimind2", hidden_size=64, num_hidden_layers=1, vocab_size=300)
GPU = World(rank=0, size=1, local_rank=0, device=torch.device("cuda:0"))


def request(way, dtype="bfloat16"):
    model = dataclasses.asdict(SHAPE)
    return {"way": way, "model": model, "device": "cpu", "dtype": dtype, "compiled": False, "deterministic": False}


class Leaking(Dense):
    """The second document sees the first."""

    def __init__(self, lengths, device):
        first, second, *others = lengths
        super().__init__((first + second, *others), device)
        self.position = Dense(lengths, device).position


class LookingAhead(Dense):
    """A token sees the next one."""

    def __init__(self, lengths, device):
        super().__init__(lengths, device)
        self.mask = self.mask | self.mask.roll(-1, 1) & self.mask.T.roll(-1, 1)


class MixingHeads(Dense):
    """Queries find the keys of other queries."""

    def attend(self, q, k, v):
        groups = q.shape[1] // k.shape[1]
        return super().attend(q, k.repeat(1, groups, 1, 1), v.repeat(1, groups, 1, 1))


class WithoutGradient(Dense):
    """Right forth, wrong back."""

    def attend(self, q, k, v):
        return super().attend(q, (k + k.detach()) / 2, v)


class NoNumber(Dense):
    """One number is none."""

    def attend(self, q, k, v):
        out = super().attend(q, k, v).clone()
        out[0, 0, 0, 0] = torch.nan
        return out


class Broken(Dense):
    """Works for the first row only."""

    def attend(self, q, k, v):
        if self.lengths != probe.LENGTHS[0]:
            raise RuntimeError("no kernel\nfor this")
        return super().attend(q, k, v)


FAULTS = (Leaking, LookingAhead, MixingHeads, WithoutGradient, NoNumber, Broken)


@pytest.mark.parametrize("dtype", probe.TOLERANCE)
@pytest.mark.parametrize("fault", FAULTS)
def test_a_way_that_is_wrong_anywhere_is_refused(fault, dtype, monkeypatch, capfd):
    monkeypatch.setitem(attention.WAYS, "faulty", fault)
    assert probe.main([json.dumps(request("faulty", dtype))]) == 0
    wrong = json.loads(capfd.readouterr().out)["wrong"]
    assert wrong.startswith("RuntimeError: no kernel for this" if fault is Broken else "off by")


@pytest.mark.parametrize("dtype", probe.TOLERANCE)
def test_ways_that_are_right_pass_in_every_type(gpu_kernels, dtype):  # noqa: F811
    for way in ("padded", "document by document", "varlen"):
        assert probe.wrong(request(way, dtype)) is None


def test_kernels_that_a_machine_lacks_are_an_answer_of_one_line():
    said = probe.tried(request("varlen"))
    assert said.startswith("NotImplementedError") and "\n" not in said and len(said) <= probe.SHOWN


@pytest.mark.parametrize(
    ("script", "said"),
    [
        ("sleep 60", "its trial took more than 0 s"),
        ("kill -SEGV $$", "RuntimeError: its trial ended with -11"),
        ("exit 3", "RuntimeError: its trial ended with 3"),
        ("echo all is well", "JSONDecodeError"),
        ("echo '[]'", "TypeError"),
        ("true", "IndexError"),
        (None, "FileNotFoundError"),
    ],
)
def test_a_trial_that_hangs_crashes_or_babbles_is_a_reason_and_no_error(script, said, tmp_path, monkeypatch):
    python = tmp_path / "python"
    if script is not None:
        python.write_text(f"#!/bin/sh\n{script}\n")
        python.chmod(0o700)
    monkeypatch.setattr(probe.sys, "executable", str(python))
    monkeypatch.setattr(probe, "LIMIT_S", 0.4 if script == "sleep 60" else 30.0)
    assert probe.tried(request("flex")).startswith(said)


def chosen(monkeypatch, answers, ranks=GPU, **options):
    """What is chosen, and said, when the trials answer so."""
    monkeypatch.setattr(probe, "tried", lambda request: answers[request["way"]])
    model, told = MiniMind(SHAPE), []
    config = TrainConfig(**{"dtype": "float16", **options})
    return probe.choose(config, model, ranks, told.append), model.way, told


def test_the_first_way_that_is_right_is_taken_and_the_others_reasons_are_said(monkeypatch):
    name, way, told = chosen(monkeypatch, {"varlen": None})
    assert (name, way, told) == ("varlen", Varlen, ["attention: varlen, tried on this GPU"])
    name, _, told = chosen(monkeypatch, {"varlen": "ImportError: no flash", "flex": None})
    assert (name, told) == ("flex", ["attention: flex (varlen: ImportError: no flash)"])
    name, way, told = chosen(monkeypatch, {"varlen": "off by 0.3", "flex": "RuntimeError: no triton"})
    assert (name, way) == ("padded", Padded)
    assert told == ["attention: padded (varlen: off by 0.3; flex: RuntimeError: no triton)"]


def test_float32_is_nothing_for_varlen_and_no_process_is_asked():
    assert probe.tried(request("varlen", "float32")) == "not for float32"


def test_ranks_that_disagree_all_take_the_usual_way(monkeypatch):
    class Two(World):
        def gather(self, own):
            return [*own, 1]

    ranks = Two(rank=0, size=2, local_rank=0, device=torch.device("cuda:0"))
    name, way, told = chosen(monkeypatch, {"varlen": None}, ranks)
    assert (name, way, told) == ("padded", Padded, ["attention: padded (varlen: not on every rank)"])


@pytest.mark.parametrize("options", [{"pack": False}, {"dropout": 0.1}, {"device": "cpu"}])
def test_where_there_is_nothing_to_choose_nothing_is_tried_or_said(options, monkeypatch):
    ranks = World(rank=0, size=1, local_rank=0, device=torch.device(options.get("device", "cuda")))
    assert chosen(monkeypatch, {}, ranks, **options) == (None, None, [])


def test_a_checkpoint_knows_how_was_attended_and_a_resume_says_what_changed(
    gpu_kernels,  # noqa: F811
    tmp_path,
    monkeypatch,
    capsys,
):
    corpus.make(tmp_path)
    flags = (*TINY, "--from_weight", "none", "--accumulation_steps", "1", "--batch_size", "4")

    def use(name):
        def choose(config, model, ranks, say):
            model.way = attention.WAYS[name]
            return name

        monkeypatch.setattr(probe, "choose", choose)

    use("varlen")
    corpus.train_here(tmp_path, "pretrain", *flags, "--max_steps", "1", run="ways")
    state = json.loads((tmp_path / "runs/ways/ckpt/step-00000001/state.json").read_text())
    assert state["computed_by"]["attention"] == "varlen"
    use("padded")
    corpus.train_here(tmp_path, "pretrain", *flags, "--max_steps", "2", run="ways")
    assert "note: attention was varlen, is padded: the same samples" in capsys.readouterr().out
