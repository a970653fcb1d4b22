"""Weights with another tokenizer, or a damaged description: refused in a paragraph that says what to do."""

import contextlib
import json
import shutil

import pytest
import torch

from minimind import __main__ as program
from minimind import checkpoint, tokenizer
from minimind.rundir import Reason, RunError
from tests.support import corpus
from tests.support.corpus import TINY

ASK = ("--prompt", "hello", "--max_new_tokens", "2")


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """Weights trained with one tokenizer, then another of the same size put in its place by the tokenizer stage."""
    folder = corpus.make(tmp_path_factory.mktemp("fit"))
    corpus.train_here(folder, "pretrain", *TINY, "--epochs", "1", run="base")
    corpus.write_jsonl(folder / "other.jsonl", corpus.texts(40, seed=77, least=9, most=60))
    first = tokenizer.Tokenizer(folder / "out" / "tokenizer")
    with contextlib.chdir(folder):
        asked = ("--data_path", "other.jsonl", "--vocab_size", str(first.vocab_size), "--run_dir", "runs/words")
        assert program.main(["tokenizer", *asked]) == 0
    second = tokenizer.Tokenizer(folder / "out" / "tokenizer")
    assert second.sha256 != first.sha256
    return folder, first, second


def chat(folder, *words) -> int:
    with contextlib.chdir(folder):
        return program.main(["chat", "--from_weight", "pretrain", *ASK, *words])


def test_a_new_tokenizer_leaves_the_old_one_beside_it(home):
    folder, first, _ = home
    kept = folder / "out" / f"tokenizer.{first.sha256[:8]}"
    assert tokenizer.Tokenizer(kept).sha256 == first.sha256


def test_another_tokenizer_of_the_same_size_is_refused_and_the_right_one_named(home, capsys):
    folder, first, _ = home
    assert chat(folder) == 3
    said = capsys.readouterr().err
    assert "is not the one that" in said and f"--tokenizer out/tokenizer.{first.sha256[:8]}" in said
    assert chat(folder, "--tokenizer", f"out/tokenizer.{first.sha256[:8]}") == 0
    assert chat(folder, "--any_tokenizer") == 0
    (folder / "out" / "pretrain_64.json").rename(folder / "out" / "away.json")
    try:  # the original's files name none
        assert chat(folder) == 0
    finally:
        (folder / "out" / "away.json").rename(folder / "out" / "pretrain_64.json")


def test_training_on_from_weights_of_another_tokenizer_is_refused_unless_insisted(home):
    folder, first, _ = home
    flags = (*TINY, "--max_steps", "1", "--batch_size", "4")
    with pytest.raises(RunError) as error:
        corpus.train_here(folder, "full_sft", *flags, run="refused")
    assert error.value.reason is Reason.DATA_INVALID and "--any_tokenizer" in error.value.remedy
    assert f"tokenizer.{first.sha256[:8]}" in error.value.remedy and "hidden_size" not in str(error.value)
    assert corpus.train_here(folder, "full_sft", *flags, "--any_tokenizer", run="insisted")


def test_another_size_of_vocabulary_speaks_of_the_tokenizer_and_not_of_the_width(home, tmp_path):
    folder, _, second = home
    corpus.random_weights(folder / "out" / "wide_64.pth", "minimind2", vocab_size=second.vocab_size + 7)
    with pytest.raises(RunError) as error:
        corpus.train_here(folder, "full_sft", *TINY, "--from_weight", "wide", "--any_tokenizer", run="wide")
    assert "--tokenizer" in error.value.remedy and "hidden_size" not in str(error.value)


def test_a_folder_as_starting_weights_is_called_a_folder_and_how_to_turn_it_into_a_file(home, tmp_path):
    folder, first, _ = home
    with contextlib.chdir(folder):
        kept = f"out/tokenizer.{first.sha256[:8]}"
        assert program.main(["export", "--from_weight", "pretrain", "--tokenizer", kept, "--to", "hf"]) == 0
    for name, told in (("./hf", "--format minimind"), ("./runs", "give a file")):
        with pytest.raises(RunError, match="is a folder") as error:
            corpus.train_here(folder, "full_sft", *TINY, "--from_weight", name, run=f"from-{name[2:]}")
        assert told in error.value.remedy


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("{", "JSONDecodeError"),
        ("[1]", "no JSON object"),
        ("[" * 100_000, "RecursionError"),
        ("\xff\xfe", "JSONDecodeError"),
        (" " * (1 << 20) + "{}", "larger than"),
        ('{"model": [1]}', "`model` is no object"),
        ('{"model": {"head_dim": 0}}', "head_dim is '0'"),
        ('{"model": {"head_dim": "8"}}', "head_dim is '8'"),
        ('{"model": {"head_dim": true}}', "head_dim is 'True'"),
        ('{"model": {"head_dim": 8.5}}', "head_dim is '8.5'"),
        ('{"model": {"head_dim": 1e300}}', "head_dim is '1e+300'"),
        ('{"model": {"rms_norm_eps": NaN}}', "rms_norm_eps is 'nan'"),
        ('{"model": {"rms_norm_eps": [1]}}', "rms_norm_eps is '[1]'"),
        ('{"model": {"rope_theta": 0}}', "rope_theta is '0'"),
        ('{"model": {"rope_theta": 1e400}}', "rope_theta is 'inf'"),
        ('{"model": {"max_position_embeddings": 99999999999}}', "max_position_embeddings"),
        ('{"model": {"experts_per_token": -1}}', "experts_per_token is '-1'"),
        ('{"model": {"head_dim": 48}}', "no heads of 48"),
    ],
)
def test_a_damaged_description_is_a_paragraph_and_no_traceback(tmp_path, text, told):
    weights = corpus.random_weights(tmp_path / "x_64.pth", "minimind2", vocab_size=300)
    weights.with_suffix(".json").write_text(text)
    with pytest.raises(RunError) as error:
        checkpoint.load_model(weights)
    assert told in str(error.value), str(error.value)


def test_shapes_that_no_model_has_are_a_paragraph_and_build_nothing(tmp_path):
    good = torch.load(
        corpus.random_weights(tmp_path / "x.pth", "minimind3", vocab_size=300, use_moe=True), weights_only=True
    )
    first = "model.layers.0."
    for changed in (
        {"model.embed_tokens.weight": torch.zeros(0, 64)},
        {"model.embed_tokens.weight": torch.zeros(300, 0)},
        {"model.embed_tokens.weight": torch.zeros(300)},
        {"model.embed_tokens.weight": torch.zeros(300, 60)},
        {"model.layers.999999999.mlp.up_proj.weight": torch.zeros(2, 2)},
        {"model.layers.x.mlp.up_proj.weight": torch.zeros(2, 2)},
        {f"{first}self_attn.q_norm.weight": torch.zeros(())},
        {f"{first}self_attn.q_norm.weight": torch.zeros(0)},
        {f"{first}self_attn.k_proj.weight": torch.zeros(0, 64)},
        {f"{first}mlp.gate.weight": torch.zeros(())},
        {f"{first}mlp.gate.weight": torch.zeros(100_000, 64)},
    ):
        torch.save(good | changed, tmp_path / "odd.pth")
        with pytest.raises(RunError, match="holds no MiniMind model"):
            checkpoint.load_model(tmp_path / "odd.pth")


def test_views_that_would_grow_and_numbers_that_are_none_are_refused(tmp_path):
    good = torch.load(corpus.random_weights(tmp_path / "x.pth", "minimind2", vocab_size=300), weights_only=True)
    huge = torch.zeros(1).as_strided((1 << 20, 1 << 20), (0, 0))
    for changed, told in (
        ({"model.embed_tokens.weight": huge, "lm_head.weight": huge, "model.norm.weight": huge}, "claim"),
        ({"model.embed_tokens.weight": huge}, "claims more"),
        ({"model.norm.weight": torch.ones(64, device="meta")}, "_rebuild_meta"),
        ({f"model.layers.{n}.mlp.up_proj.weight": good["lm_head.weight"] for n in range(9)}, "claim"),
        ({"model.norm.weight": torch.ones(64, dtype=torch.int64)}, "torch.int64"),
        ({"model.norm.weight": torch.ones(64, dtype=torch.complex64)}, "torch.complex64"),
        ({"model.norm.weight": torch.ones(64).to_sparse()}, "_rebuild_sparse"),
    ):
        torch.save(good | changed, tmp_path / "odd.pth")
        with pytest.raises(RunError, match="no weights file") as error:
            checkpoint.load_model(tmp_path / "odd.pth")
        assert told in str(error.value)


def test_shapes_whose_product_would_fill_the_memory_are_refused_before_any_is_taken(tmp_path):
    good = torch.load(corpus.random_weights(tmp_path / "x.pth", "minimind2", vocab_size=300), weights_only=True)
    wide = {name: torch.zeros(1, 1 << 20, dtype=torch.half) for name in ("model.embed_tokens.weight", "lm_head.weight")}
    tall = {"model.layers.0.self_attn.q_proj.weight": torch.zeros(1 << 20, 1, dtype=torch.half)}
    torch.save(good | wide | tall, tmp_path / "odd.pth")
    with pytest.raises(RunError, match=r"does not fit|no MiniMind"):
        checkpoint.load_model(tmp_path / "odd.pth")


def test_no_message_repeats_the_advice_to_read_a_file_unsafely(tmp_path):
    torch.save({"a": print}, tmp_path / "odd.pth")
    with pytest.raises(RunError) as error:
        checkpoint.load_model(tmp_path / "odd.pth")
    assert "weights_only" not in str(error.value) and "nothing in it was run" in str(error.value)


def test_a_tokenizer_with_its_template_in_a_file_of_its_own_is_the_same(home, tmp_path):
    _, first, _ = home
    shutil.copytree(first.folder.parent / f"tokenizer.{first.sha256[:8]}", tmp_path / "words")
    path = tmp_path / "words" / "tokenizer_config.json"
    config = json.loads(path.read_text())
    (tmp_path / "words" / "chat_template.jinja").write_text(config.pop("chat_template"))
    path.write_text(json.dumps(config))
    assert tokenizer.Tokenizer(tmp_path / "words").sha256 == first.sha256
