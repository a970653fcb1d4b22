"""Folders of other programs and names that are taken: refused in a paragraph, nothing overwritten, nothing half."""

import contextlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys

import pytest
import safetensors.torch
import torch

from minimind import __main__ as program
from minimind import checkpoint, huggingface, proof, tokenizer
from minimind.durable import verified_files
from minimind.rundir import RunError
from tests.support import corpus

BY_TRANSFORMERS = proof.by_transformers


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    folder = corpus.make(tmp_path_factory.mktemp("exchange"))
    words = tokenizer.load(folder / "out" / "tokenizer")
    corpus.random_weights(folder / "out" / "full_sft_64.pth", "minimind2", vocab_size=words.vocab_size)
    corpus.random_weights(folder / "out" / "other_64.pth", "minimind2", vocab_size=words.vocab_size, seed=9)
    return folder


@pytest.fixture(autouse=True)
def without_asking_transformers(request, monkeypatch):
    """What transformers says is tested where it is the oracle; here its start-up would be most of the time."""
    monkeypatch.setattr(proof, "by_transformers", lambda *args, **kwargs: "not asked")


def export(home, *words) -> int:
    with contextlib.chdir(home):
        return program.main(["export", *words])


@pytest.fixture
def folder(home, tmp_path):
    assert export(home, "--from_weight", "full_sft", "--to", str(tmp_path / "hf")) == 0
    return tmp_path / "hf"


def refused(folder, told):
    with pytest.raises(RunError) as error:
        checkpoint.load_model(folder)
    assert told in str(error.value), str(error.value)


def change(folder, name="config.json", **entries):
    path = folder / name
    path.write_text(json.dumps(json.loads(path.read_text()) | entries))


@pytest.mark.parametrize(
    ("entries", "told"),
    [
        ({"model_type": "gpt2"}, "type 'gpt2'"),
        ({"model_type": "qwen3"}, "model_type is qwen3"),
        ({"hidden_act": "gelu"}, "hidden_act is 'gelu'"),
        ({"attention_bias": True}, "attention_bias is True"),
        ({"quantization_config": {"bits": 4}}, "quantization_config"),
        ({"hidden_size": 128}, "hidden_size is 128, the tensors' is 64"),
        ({"num_attention_heads": 4}, "num_attention_heads is 4"),
        ({"head_dim": 0}, "num_attention_heads"),
        ({"head_dim": "wide"}, "head_dim is 'wide'"),
        ({"rms_norm_eps": 1e9}, "rms_norm_eps"),
        ({"rope_scaling": {"rope_type": "linear", "factor": 2.0}}, "of the kind linear"),
        ({"rope_scaling": {"rope_type": "yarn", "factor": "x"}}, "yarn settings are no numbers"),
        ({"rope_scaling": {"rope_type": "yarn", "factor": 0.5}}, "make no sense"),
        ({"rope_scaling": [1]}, "rope_scaling is no object"),
    ],
)
def test_a_config_that_minimind_cannot_compute_is_refused(folder, entries, told):
    if entries == {"head_dim": 0}:
        entries = {"head_dim": 4}
    change(folder, **entries)
    refused(folder, told)


def test_a_config_that_is_no_json_too_deep_or_too_large_is_refused(folder):
    for text in ("{", "[1]", "[" * 100_000, " " * (huggingface.LIMIT_BYTES + 1)):
        (folder / "config.json").write_text(text)
        refused(folder, "config.json")


def test_tensors_cut_or_changed_anywhere_are_refused_or_read_as_they_are(folder):
    path = folder / "model.safetensors"
    data, rng = path.read_bytes(), random.Random(3)
    for _ in range(25):
        path.write_bytes(data[: rng.randrange(len(data))])
        refused(folder, "model.safetensors cannot be read")
    path.unlink()
    refused(folder, "model.safetensors is missing")


def in_shards(folder, names=("a.safetensors", "b.safetensors")):
    state = safetensors.torch.load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    where = {key: names[index % 2] for index, key in enumerate(state)}
    for name in names:
        part = {key: value for key, value in state.items() if where[key] == name}
        safetensors.torch.save_file(part, folder / name)
    return where


def test_an_index_that_leads_out_lies_or_lacks_is_refused(folder, home):
    where = in_shards(folder)
    index = folder / "model.safetensors.index.json"
    first = next(iter(where))
    shutil.copy(folder / "a.safetensors", folder.parent / "a.safetensors")
    index.write_text(json.dumps({"weight_map": where}))
    with torch.no_grad():
        ids = torch.arange(3, 40)[None]
        assert torch.equal(
            checkpoint.load_model(folder)(ids), checkpoint.load_model(home / "out" / "full_sft_64.pth")(ids)
        )
    for changed, told in (
        ({**where, first: "../a.safetensors"}, "no safetensors file of this folder"),
        ({**where, first: str(folder.parent / "a.safetensors")}, "no safetensors file of this folder"),
        ({**where, first: "a.bin"}, "no safetensors file of this folder"),
        ({**where, first: "b.safetensors"}, "expects elsewhere"),
        ({**where, "model.more.weight": "a.safetensors"}, "model.more.weight is named by the index"),
        ({**where, "model.more.weight": "0.safetensors"}, "0.safetensors is missing"),
        ({**where, first: 3}, "no weight_map of names"),
    ):
        index.write_text(json.dumps({"weight_map": changed}))
        refused(folder, told)


def test_a_head_of_its_own_and_odd_numbers_are_refused(folder):
    path = folder / "model.safetensors"
    state = safetensors.torch.load_file(path)
    for changed, told in (
        ({"lm_head.weight": state["model.embed_tokens.weight"] + 1}, "MiniMind's are one matrix"),
        ({"model.norm.weight": state["model.norm.weight"].long()}, "torch.int64"),
        ({"model.layers.7.mlp.up_proj.weight": torch.zeros(2, 2)}, "not numbered from 0"),
        ({"model.norm.extra": torch.zeros(2)}, "unexpected model.norm.extra"),
    ):
        safetensors.torch.save_file(state | changed, path)
        refused(folder, told)


def everything(folder):
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_an_earlier_export_is_replaced_and_anything_else_is_left_alone(home, folder, capsys):
    before = everything(folder)
    assert export(home, "--from_weight", "other", "--to", str(folder)) == 0
    assert everything(folder) != before and verified_files(folder)
    for spoil in (
        lambda: (folder / "notes.txt").write_text("mine"),
        lambda: change(folder, architectures=["Mine"]),
        lambda: (folder / "SHA256SUMS").unlink(),
    ):
        copy = folder.with_name("copy")
        shutil.copytree(folder, copy)
        spoil()
        spoiled = everything(folder)
        assert export(home, "--from_weight", "full_sft", "--to", str(folder)) != 0
        assert "is there already" in capsys.readouterr().err and everything(folder) == spoiled
        shutil.rmtree(folder)
        copy.rename(folder)
    assert [path.name for path in folder.parent.iterdir()] == ["hf"]


def test_a_weights_file_is_never_overwritten(home, tmp_path, capsys):
    (tmp_path / "mine_64.pth").write_bytes(b"the only copy")
    asked = ("--from_weight", "full_sft", "--format", "minimind", "--save_dir", "out", "--to")
    assert export(home, *asked, str(tmp_path / "mine_64.pth")) != 0
    assert "it is there already" in capsys.readouterr().err
    assert (tmp_path / "mine_64.pth").read_bytes() == b"the only copy"
    assert export(home, *asked, str(tmp_path / "mine.bin")) != 0
    assert "ends in .pth" in capsys.readouterr().err


def test_weights_that_compute_something_else_never_get_the_name(home, tmp_path, monkeypatch, capsys):
    described = huggingface.describe
    monkeypatch.setattr(huggingface, "describe", lambda *a, **k: described(*a, **k) | {"rms_norm_eps": 0.05})
    assert export(home, "--from_weight", "full_sft", "--to", str(tmp_path / "hf")) != 0
    assert "does not compute what the source computes" in capsys.readouterr().err
    assert not any(tmp_path.iterdir())


def test_numbers_too_large_for_the_type_are_refused(home, tmp_path, capsys):
    state = {name: value.float() for name, value in torch.load(home / "out" / "full_sft_64.pth").items()}
    state["model.norm.weight"] = state["model.norm.weight"].clone().fill_(1e5)
    torch.save(state, tmp_path / "large_64.pth")
    asked = ("--from_weight", str(tmp_path / "large_64.pth"), "--tokenizer", "out/tokenizer")
    assert export(home, *asked, "--dtype", "float16", "--to", str(tmp_path / "hf")) != 0
    assert "not finite in float16: model.norm.weight" in capsys.readouterr().err
    assert not (tmp_path / "hf").exists()


KILLED_BEFORE_ITS_NAME = """
import os, signal, sys
from minimind import __main__ as program, proof
proof.by_transformers = lambda *args, **kwargs: os.kill(os.getpid(), signal.SIGKILL)
program.main(["export", *sys.argv[1:]])
"""


def test_kill_9_while_it_is_written_leaves_the_old_export_as_it_was(home, folder):
    before = everything(folder)
    done = subprocess.run(
        [sys.executable, "-c", KILLED_BEFORE_ITS_NAME, "--from_weight", "other", "--to", str(folder)],
        cwd=home,
        env=corpus.environ(),
        check=False,
        timeout=120,
    )
    assert done.returncode == -signal.SIGKILL and everything(folder) == before
    assert export(home, "--from_weight", "other", "--to", str(folder)) == 0


def test_without_transformers_it_is_written_all_the_same_and_says_who_was_not_asked(
    home, tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr(proof, "by_transformers", BY_TRANSFORMERS)
    monkeypatch.setitem(sys.modules, "transformers", None)  # as where it is not installed
    assert export(home, "--from_weight", "full_sft", "--to", str(tmp_path / "hf")) == 0
    assert "not installed here" in capsys.readouterr().out


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_rounding_is_measured_and_said(home, tmp_path, dtype, capsys):
    words = tokenizer.load(home / "out" / "tokenizer")
    source = corpus.random_weights(tmp_path / "x_64.pth", "minimind3", vocab_size=words.vocab_size, dtype="float")
    asked = ("--from_weight", str(source), "--tokenizer", "out/tokenizer", "--dtype", dtype)
    assert export(home, *asked, "--to", str(tmp_path / "hf")) == 0
    said = capsys.readouterr().out
    assert f"accepted for {dtype}" in said and "logits: 0.0e+00" not in said


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting a small disk needs root")
def test_a_full_disk_is_said_and_leaves_nothing(home, tmp_path, capsys):
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=128k", "tmpfs", disk]
    if subprocess.run(mount, check=False, capture_output=True).returncode:
        pytest.skip("tmpfs cannot be mounted here")
    try:
        for asked in ((), ("--format", "minimind")):
            name = "new.pth" if asked else "hf"
            assert export(home, "--from_weight", "full_sft", *asked, "--to", str(disk / name)) == 6
            assert "cannot be written" in capsys.readouterr().err and not any(disk.iterdir())
    finally:
        subprocess.run(["umount", disk], check=True)


@pytest.mark.parametrize(
    ("asked", "told"),
    [
        ((), "export needs a place"),
        (("--to", "x"), "export needs weights"),
        (("--to", "x", "--format", "peft", "--from_weight", "full_sft"), "needs an adapter"),
        (("--to", "x", "--from_weight", "nothing"), "no weights by the name"),
    ],
)
def test_what_is_lacking_is_asked_for(home, capsys, asked, told):
    assert export(home, *asked) in (2, 3)
    assert told in capsys.readouterr().err
