"""What a step computes is counted right, and what is slow is named by what was measured."""

import dataclasses

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from minimind.config import ModelConfig
from minimind.efficiency import Account, Setting, Spent, trouble
from minimind.flops import PEAKS, peak_flops, training_cost
from minimind.lora import inject, ranks
from minimind.model import MiniMind

LENGTHS = [5, 40, 1, 17]


def counted(model, config, lengths, targets):
    """Operations of torch's own matrix products, forward and backward; attention's kernel is none of them."""
    torch.manual_seed(0)
    ids = torch.randint(0, config.vocab_size, (1, sum(lengths)))
    with FlopCounterMode(display=False) as counter:
        logits = model(ids, lengths=lengths, select=torch.arange(targets))
        logits.square().sum().backward()
    counts = counter.get_flop_counts()["Global"]
    return sum(flops for kernel, flops in counts.items() if "attention" not in str(kernel))


@pytest.mark.parametrize(
    ("arch", "moe"), [("minimind2", False), ("minimind2", True), ("minimind3", False), ("minimind3", True)]
)
def test_the_formula_counts_the_matrix_products_that_torch_counts(arch, moe):
    config = ModelConfig.for_arch(arch, hidden_size=64, num_hidden_layers=2, vocab_size=300, use_moe=moe)
    expected = training_cost(config, adapters=None).of(positions=sum(LENGTHS), pairs=0, targets=30)
    assert counted(MiniMind(config).train(), config, LENGTHS, 30) == expected


@pytest.mark.parametrize("moe", [False, True])
@pytest.mark.parametrize("arch", ["minimind2", "minimind3"])
@pytest.mark.parametrize("targets", ["square", "all", "q_proj", "v_proj", "o_proj", "gate_proj", "down_proj"])
def test_on_a_frozen_model_only_what_a_token_goes_through_and_what_a_gradient_needs_is_counted(arch, moe, targets):
    config = ModelConfig.for_arch(arch, hidden_size=64, num_hidden_layers=2, vocab_size=300, use_moe=moe)
    model = MiniMind(config).train()
    inject(model, rank=4, targets=targets)
    expected = training_cost(config, adapters=ranks(model)).of(positions=sum(LENGTHS), pairs=0, targets=30)
    assert counted(model, config, LENGTHS, 30) == expected


def test_attention_below_the_first_adapter_has_no_backward():
    config = ModelConfig.for_arch("minimind2", hidden_size=64, num_hidden_layers=2, vocab_size=300)

    def pair(targets):
        model = MiniMind(config)
        inject(model, rank=4, targets=targets)
        return training_cost(config, adapters=ranks(model)).pair

    assert pair("q_proj") == training_cost(config, adapters=None).pair == 2 * 3 * 4 * 64
    assert pair("o_proj") == (1 + 3) * 4 * 64


def test_attention_is_counted_by_pairs_of_each_text_and_three_times():
    config = ModelConfig.for_arch("minimind2", hidden_size=64, num_hidden_layers=2, vocab_size=300)
    without, one, two = (
        training_cost(config, adapters=None).of(positions=80, pairs=pairs, targets=9)
        for pairs in (0, 80 * 81 // 2, 2 * (40 * 41 // 2))
    )
    assert one - without == 3 * 4 * 2 * 64 * (80 * 81 // 2)
    assert (two - without) / (one - without) == pytest.approx(0.5, abs=0.01)


@pytest.mark.parametrize(
    ("name", "dtype", "tera"),
    [
        ("NVIDIA GeForce RTX 4090", "bfloat16", 165.2),
        ("NVIDIA GeForce RTX 4090", "float32", 82.6),
        ("NVIDIA GeForce RTX 4090 D", "float16", 147.1),
        ("NVIDIA GeForce RTX 4090 Laptop GPU", "bfloat16", None),
        ("NVIDIA H100 80GB HBM3", "bfloat16", 989.4),
        ("NVIDIA H100 PCIe", "bfloat16", 756.0),
        ("NVIDIA A100-SXM4-80GB", "bfloat16", 312.0),
        ("NVIDIA A10", "bfloat16", 125.0),
        ("NVIDIA A100-PCIE-40GB", "bfloat16", 312.0),
        ("NVIDIA A100 80GB PCIe", "float32", 19.5),
        ("NVIDIA H200", "bfloat16", 989.4),
        ("NVIDIA H200 NVL", "bfloat16", 835.5),
        ("NVIDIA GeForce RTX 4080 SUPER", "bfloat16", 104.4),
        ("NVIDIA RTX A6000", "bfloat16", 154.8),
        ("Tesla V100S-PCIE-32GB", "float16", 130.0),
        ("NVIDIA H100 80GB HBM3 MIG 1g.10gb", "bfloat16", None),
        ("NVIDIA A100-SXM4-40GB MIG 3g.20gb", "bfloat16", None),
        ("NVIDIA A40-8Q", "bfloat16", None),
        ("NVIDIA GeForce RTX 5090 D", "bfloat16", None),
        ("NVIDIA L20", "bfloat16", None),
        ("NVIDIA A1000", "bfloat16", None),
        ("NVIDIA L40S", "bfloat16", 362.0),
        ("Tesla V100-SXM2-32GB", "bfloat16", 15.7),
        ("Tesla V100-SXM2-32GB", "float16", 125.0),
        ("AMD Instinct MI300X", "bfloat16", None),
    ],
)
def test_a_devices_peak_is_that_of_its_own_name_and_type(name, dtype, tera):
    found = peak_flops(name, dtype)
    assert found == (None if tera is None else pytest.approx(tera * 1e12))


def test_no_peak_of_matrix_units_is_below_that_of_fp32():
    assert all(half > single for half, single in PEAKS.values())


MODEL = ModelConfig.for_arch("minimind2", hidden_size=512, num_hidden_layers=8, vocab_size=6400)
GOOD = Setting(
    cost=training_cost(MODEL, adapters=None),
    parameters=300_000_000,
    dtype="bfloat16",
    pack=True,
    fill=1.0,
    log_interval=1,
    compiled=False,
    peak_flops=100e12,
)
SLOW = Spent(steps=100, passes=100, tokens=2_000_000, pass_tokens=2_000_000, flops=3e14, seconds=60.0)  # MFU 5 %


@pytest.mark.parametrize(
    ("spent", "setting", "named"),
    [
        ({"data_wait_s": 4.0}, {}, "the disk under the data is slow"),
        ({"data_wait_s": 4.0, "steps": 10_000}, {}, "a step lasts 6 ms only: raise --batch_size"),
        ({"save_s": 12.0}, {}, "20% of the time goes into checkpoints: raise --save_interval"),
        ({"log_s": 6.0}, {}, "10% of the time goes into logging: raise --log_interval (it is 1)"),
        ({}, {"pack": False, "fill": 0.31}, "69% of the padded rows is padding: leave --no-pack away"),
        ({}, {"dtype": "float32"}, "give --dtype bfloat16"),
        ({"pass_tokens": 50_000}, {}, "a pass holds 500 tokens only: raise --batch_size"),
        ({}, {"parameters": 26_000_000}, "with 26,000,000 parameters the GPU waits"),
        ({}, {}, "look at a trace (--profile)"),
    ],
)
def test_what_is_slow_is_named_with_the_figure_that_says_so(spent, setting, named):
    told = trouble(dataclasses.replace(SLOW, **spent), dataclasses.replace(GOOD, **setting))
    assert told is not None and named in told


def test_nothing_is_said_of_a_busy_gpu_nor_of_one_whose_peak_is_unknown():
    assert trouble(dataclasses.replace(SLOW, flops=3e15), GOOD) is None
    assert trouble(SLOW, dataclasses.replace(GOOD, peak_flops=None)) is None


def run(account, clock, *, steps, step_s, wait_s, flops=1e12, save_s=0.0, trace_s=0.0):
    for _ in range(steps):
        clock[0] += step_s
        account.step(tokens=1000, passes=1, pass_tokens=1000, flops=flops, data_wait_s=wait_s, step_s=step_s)
        clock[0] += save_s + trace_s
        account.settle(log_s=0.0, save_s=save_s, trace_s=trace_s)


def test_a_warning_comes_once_and_not_before_enough_was_seen():
    said, clock = [], [100.0]
    account = Account(setting=dataclasses.replace(GOOD, peak_flops=None), say=said.append, clock=lambda: clock[0])
    run(account, clock, steps=22, step_s=1.0, wait_s=0.5)
    assert not said  # the first three steps do not count
    run(account, clock, steps=50, step_s=1.0, wait_s=0.5)
    assert len(said) == 1 and said[0].startswith("warning: the loader takes 50% of the time")


def test_the_last_line_says_rate_waiting_saves_and_the_efficiency_where_one_rank_is_known():
    said, clock = [], [0.0]
    account = Account(setting=GOOD, say=said.append, clock=lambda: clock[0])
    account.tell(saves=1, save_s=0.1, one_rank=None, ranks=1)
    assert not said, "an attempt without a step that counts has nothing to tell"
    run(account, clock, steps=13, step_s=2.0, wait_s=0.02)
    account.tell(saves=3, save_s=1.25, one_rank=(400.0, "run-a"), ranks=2)
    assert said == [
        "500 tokens/s over 10 steps, MFU 0.5%, 1.0% of the time waiting for data, 1.2 s standing still for 3 "
        "checkpoints, in the steps alone 1.25 times one rank (run-a): 62% efficient"
    ]
    account.tell(saves=1, save_s=0.0, one_rank=None, ranks=2)
    assert "one rank" not in said[-1] and said[-1].endswith("1 checkpoint")


def test_the_time_that_a_trace_takes_is_no_steps_and_uses_no_warning_up():
    said, clock = [], [0.0]
    account = Account(setting=GOOD, say=said.append, clock=lambda: clock[0])
    run(account, clock, steps=7, step_s=1.0, wait_s=0.0, flops=40e12)
    run(account, clock, steps=1, step_s=1.0, wait_s=0.0, flops=40e12, trace_s=600.0)
    run(account, clock, steps=20, step_s=1.0, wait_s=0.0, flops=40e12)
    account.tell(saves=0, save_s=0.0, one_rank=None, ranks=1)
    assert not any(text.startswith("warning") for text in said) and "MFU 40.0%" in said[-1]
    run(account, clock, steps=60, step_s=1.0, wait_s=0.5, flops=40e12)
    assert said[-1].startswith("warning: the loader takes")


def test_saves_do_not_make_more_ranks_less_efficient_since_one_ranks_figure_has_none():
    said, clock = [], [0.0]
    account = Account(setting=GOOD, say=said.append, clock=lambda: clock[0])
    run(account, clock, steps=13, step_s=2.0, wait_s=0.0, save_s=2.0)
    account.tell(saves=13, save_s=26.0, one_rank=(400.0, "run-a"), ranks=2)
    assert said[-1].startswith("250 tokens/s") and said[-1].endswith("1.25 times one rank (run-a): 62% efficient")
