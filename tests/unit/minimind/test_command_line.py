"""The command line: the original's names, dashes for underscores, the generation's defaults, refusals with a remedy."""

import pytest

from minimind import flags
from minimind.config import UsageError


def test_every_flag_of_the_original_is_accepted_with_underscores_and_dashes():
    words = (
        "--epochs 1 --batch_size 2 --learning_rate 1e-4 --device cpu --dtype bfloat16 --use_wandb --wandb_project P "
        "--num_workers 2 --accumulation_steps 1 --grad_clip 1 --log_interval 1 --save_interval 1 --hidden_size 64 "
        "--num_hidden_layers 2 --max_seq_len 64 --use_moe 0 --data_path a --save_dir b --from_weight none "
        "--from_resume 1 --lora_name c --use_compile 0"
    )
    one = flags.parse("lora", words.split())
    other = flags.parse("lora", [w.replace("_", "-") if w.startswith("--") else w for w in words.split()])
    assert one == other and one.use_wandb and one.from_resume is True and one.lora_name == "c"
    assert flags.parse("dpo", ["--out_dir", "x", "--beta", "0.2"]).save_dir.name == "x"


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--epoch", "3"], "did you mean --epochs?"),
        (["--epochs", "two"], "--help"),
        (["--batch_size", "0"], "--batch_size 1"),
        (["--max_seq_len", "1"], "--max_seq_len 2"),
        (["--hidden_size", "60"], "multiple of 16"),
        (["--hidden_size", "0"], "--hidden_size 16"),
        (["--learning_rate", "nan"], "--learning_rate 0"),
        (["--learning_rate", "-1"], "--learning_rate 0"),
        (["--seed", "-1"], "--seed 0"),
        (["--skip_bad_lines", "-1"], "--skip_bad_lines 0"),
        (["--use_moe", "perhaps"], "--help"),
        (["--data_path", ""], "--help"),
        (["--tokenizer", " "], "--help"),
        (["--from_weight="], "--help"),
    ],
)
def test_a_wrong_flag_or_value_is_refused_with_a_remedy(words, told):
    with pytest.raises(UsageError) as refused:
        flags.parse("pretrain", words)
    assert told in refused.value.remedy


@pytest.mark.parametrize(
    ("stage", "words", "expected"),
    [
        ("pretrain", [], (5e-4, 32, 8, 1, 512)),
        ("full_sft", [], (5e-7, 16, 1, 2, 512)),
        ("dpo", [], (1e-8, 4, 1, 2, 1024)),
        ("lora", [], (1e-4, 32, 1, 10, 512)),
        ("reason", [], (1e-6, 8, 1, 1, 1024)),
        ("distillation", [], (5e-6, 32, 1, 6, 512)),
        ("pretrain", ["--arch", "minimind3"], (5e-4, 32, 8, 2, 340)),
        ("full_sft", ["--arch", "minimind3"], (1e-5, 16, 1, 2, 768)),
        ("dpo", ["--arch", "minimind3"], (4e-8, 4, 1, 1, 1024)),
        ("lora", ["--arch", "minimind3"], (1e-4, 32, 1, 10, 340)),
        ("distillation", ["--arch", "minimind3"], (5e-6, 32, 1, 6, 340)),
    ],
)
def test_defaults_are_those_of_the_generation(stage, words, expected):
    read = flags.parse(stage, words)
    found = (read.learning_rate, read.batch_size, read.accumulation_steps, read.epochs, read.max_seq_len)
    assert found == expected


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--preset", "small"], (512, 8, False)),
        (["--preset", "base"], (768, 16, False)),
        (["--preset=moe"], (640, 8, True)),
        (["--arch", "minimind3", "--preset", "base"], (768, 8, False)),
        (["--arch", "minimind3", "--preset", "moe"], (768, 8, True)),
        (["--hidden_size", "64", "--preset", "moe", "--use_moe", "0"], (64, 8, False)),
    ],
)
def test_presets_have_the_published_sizes_and_single_flags_win(words, expected):
    read = flags.parse("pretrain", words)
    assert (read.hidden_size, read.num_hidden_layers, read.use_moe) == expected


@pytest.mark.parametrize("words", [["--preset", "large"], ["--arch", "minimind3", "--preset", "small"]])
def test_a_size_that_a_generation_has_not_is_usage(words):
    with pytest.raises(UsageError, match="--preset"):
        flags.parse("pretrain", words)


def test_the_two_generations_differ_in_dpo_and_adapters_as_published():
    second, third = (flags.parse("dpo", ["--arch", arch]) for arch in ("minimind2", "minimind3"))
    assert (second.beta, second.length_normalised, third.beta, third.length_normalised) == (0.1, True, 0.15, False)
    ranks = [flags.parse("lora", ["--arch", arch]).lora_rank for arch in ("minimind2", "minimind3")]
    assert ranks == [8, 16]


def test_a_rank_above_the_models_width_is_refused():
    with pytest.raises(UsageError, match="--lora_rank 65"):
        flags.parse("lora", ["--hidden_size", "64", "--lora_rank", "65"])
    assert flags.parse("lora", ["--hidden_size", "64", "--lora_rank", "64"]).lora_rank == 64
