"""Adapters: what they add, that they add up, which files and bases are refused, and what is said."""

import contextlib
import json
from pathlib import Path

import pytest
import torch

from minimind import __main__ as program
from minimind import checkpoint, flags, lora
from minimind.config import UsageError
from minimind.rundir import RunError
from tests.support import corpus

VOCAB = 300


@pytest.fixture(scope="module", params=["minimind2", "minimind3"])
def base(request, tmp_path_factory):
    return corpus.random_weights(tmp_path_factory.mktemp("base") / "full_sft_64.pth", request.param, vocab_size=VOCAB)


def adapter(path, base, *, targets="square", rank=4, seed=0, dtype=torch.float32, prefix=""):
    """A file of random pairs A, B for the linears that ``targets`` means, and the pairs themselves."""
    torch.manual_seed(seed)
    model = checkpoint.load_model(base)
    lora.inject(model, rank=rank, targets=targets)
    state = {name: torch.randn_like(value).mul(0.1).to(dtype) for name, value in lora.adapter_state(model).items()}
    torch.save({f"{prefix}{name}": value for name, value in state.items()}, path)
    return {
        name.removesuffix(".lora.A.weight"): (value.float(), state[name.replace(".A.", ".B.")].float())
        for name, value in state.items()
        if ".A." in name
    }


@torch.no_grad()
def by_hand(base, *parts):
    """The base with W + strength * BA for each (pairs, strength), in double precision."""
    model = checkpoint.load_model(base).double()
    for pairs, strength in parts:
        for name, (a, b) in pairs.items():
            model.get_submodule(name).weight += strength * (b.double() @ a.double())
    return model.float()


def same(one, other, limit=1e-5):
    ids = torch.arange(3, 60)[None]
    with torch.no_grad():
        return bool((one(ids) - other(ids)).abs().max() < limit)


@pytest.mark.parametrize("targets", ["square", "all", "q_proj,v_proj,gate_proj"])
def test_every_target_is_found_in_the_file_alone_and_adds_what_it_says(tmp_path, base, targets):
    pairs = adapter(tmp_path / "a.pth", base, targets=targets)
    found = {name.rpartition(".")[2] for name in pairs}
    assert found == {"square": {"q_proj", "o_proj"}, "all": set(lora.LORA_TARGETS)}.get(
        targets, set(targets.split(","))
    )
    model = checkpoint.load_model(base)
    lora.apply(model, tmp_path / "a.pth")
    assert same(model, by_hand(base, (pairs, 1))) and not same(model, checkpoint.load_model(base), 1e-2)
    lora.merge(model)
    assert same(model, by_hand(base, (pairs, 1))) and set(model.state_dict()) == set(
        checkpoint.load_model(base).state_dict()
    )


def test_several_adapters_add_up_with_their_strengths_also_the_same_one_twice(tmp_path, base):
    one = adapter(tmp_path / "one.pth", base, targets="all", rank=3, seed=1)
    two = adapter(tmp_path / "two.pth", base, rank=8, seed=2)
    model = checkpoint.load_model(base)
    lora.apply(model, tmp_path / "one.pth")
    lora.apply(model, tmp_path / "two.pth", strength=0.5)
    lora.apply(model, tmp_path / "two.pth")
    expected = by_hand(base, (one, 1), (two, 1.5))
    assert same(model, expected)
    torch.save(lora.adapter_state(model), tmp_path / "sum.pth")  # ranks of one file may differ by layer
    again = checkpoint.load_model(base)
    lora.apply(again, tmp_path / "sum.pth")
    assert same(again, expected)
    lora.merge(model)
    assert same(model, expected)


@pytest.mark.parametrize("prefix", ["", "_orig_mod.", "module.", "module._orig_mod."])
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_files_of_compiled_and_wrapped_models_are_read_and_their_dtype_is_said(tmp_path, base, prefix, dtype):
    pairs = adapter(tmp_path / "a.pth", base, dtype=dtype, prefix=prefix)
    model, said = checkpoint.load_model(base), []
    lora.apply(model, tmp_path / "a.pth", say=said.append)
    assert same(model, by_hand(base, (pairs, 1)))
    assert said == [f"{tmp_path / 'a.pth'}: rank 4 on q_proj, o_proj, {str(dtype).removeprefix('torch.')}"]


def test_an_adapter_of_another_base_is_refused_and_the_model_stays_as_it_was(tmp_path, base):
    good = adapter(tmp_path / "good.pth", base)
    state = torch.load(tmp_path / "good.pth", weights_only=True)
    first = "model.layers.0.self_attn.q_proj.lora."
    for changed, told in (
        ({f"{first}A.weight": torch.zeros(4, 128)}, "maps 64 to 64 here, the adapter 128 to 64"),
        ({name.replace("layers.1", "layers.8"): value for name, value in state.items()}, "no linear model.layers.8"),
        ({"lm_head.lora.A.weight": torch.zeros(4, 64), "lm_head.lora.B.weight": torch.zeros(VOCAB, 4)}, "lm_head"),
        ({f"{first}B.weight": torch.zeros(64, 5)}, "no adapter"),
        ({f"{first}C.weight": torch.zeros(64, 5)}, "no adapter"),
        ({f"{first}A.weight": torch.zeros(0, 64), f"{first}B.weight": torch.zeros(64, 0)}, "no adapter"),
    ):
        torch.save(state | changed, tmp_path / "bad.pth")
        model = checkpoint.load_model(base)
        with pytest.raises(RunError, match=told):
            lora.apply(model, tmp_path / "bad.pth")
        assert not lora.adapter_state(model) and same(model, checkpoint.load_model(base), 1e-9)
    assert good


def test_targets_that_no_block_has_are_usage():
    for targets, told in (("q_proj,head", "'head'"), ("", "empty"), ("squares", "'squares'")):
        with pytest.raises(UsageError, match="--lora_targets") as error:
            flags.parse("lora", ["--lora_targets", targets])
        assert told in str(error.value)
    assert flags.parse("lora", ["--lora-targets", "q_proj, v_proj"]).lora_targets == "q_proj, v_proj"


def test_a_strength_is_read_from_behind_a_colon_and_a_name_from_the_folder(tmp_path):
    assert lora.find("a/b.pth:0.5", tmp_path, hidden_size=64) == (Path("a/b.pth"), 0.5)
    assert lora.find("lora_identity:-1", tmp_path, hidden_size=64) == (tmp_path / "lora" / "lora_identity_64.pth", -1)
    odd = tmp_path / "x:2"
    odd.touch()
    assert lora.find(str(odd), tmp_path, hidden_size=64) == (odd, 1.0)


def test_the_stage_trains_the_targets_asked_for_and_says_on_which_base(tmp_path, capsys):
    folder = corpus.make(tmp_path)
    corpus.train_here(folder, "pretrain", *corpus.TINY, "--epochs", "1", run="base")
    trained = ("--from_weight", "pretrain", "--batch_size", "8", "--epochs", "1", "--learning_rate", "1e-2")
    corpus.train_here(folder, "lora", *corpus.TINY, *trained, "--lora_targets", "v_proj,up_proj", run="adapter")
    made = folder / "out" / "lora" / "lora_identity_64.pth"
    state = torch.load(made, weights_only=True)
    assert {name.split(".lora.")[0].rpartition(".")[2] for name in state} == {"v_proj", "up_proj"}
    assert any(value.any() for name, value in state.items() if ".B." in name)
    told = json.loads(made.with_suffix(".json").read_text())
    assert told["lora"] == {"ranks": [8], "targets": ["v_proj", "up_proj"]}
    other = torch.load(folder / "out" / "pretrain_64.pth", weights_only=True)
    other["model.norm.weight"] += 1
    torch.save(other, folder / "out" / "other_64.pth")
    (folder / "out" / "other_64.json").write_text((folder / "out" / "pretrain_64.json").read_text())
    capsys.readouterr()
    for name, warned in (("pretrain", False), ("other", True)):
        asked = ("--prompt", "hello", "--from_lora", "lora_identity", "--max_new_tokens", "3")
        with contextlib.chdir(folder):
            assert program.main(["chat", "--from_weight", name, *asked]) == 0
        said = capsys.readouterr().err
        assert "rank 8 on v_proj, up_proj, float16" in said and ("trained on other weights" in said) is warned
    more = ("--from_lora", str(made), "--lora_name", "lora_more", "--data_path", "dataset/lora_identity.jsonl")
    corpus.train_here(folder, "lora", *corpus.TINY, *trained, *more, run="more")
    assert f"{made}: rank 8 on v_proj, up_proj, float16" in capsys.readouterr().out
    further = torch.load(folder / "out" / "lora" / "lora_more_64.pth", weights_only=True)
    assert further.keys() == state.keys()
