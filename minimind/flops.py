"""Floating-point operations of a training step, and those that a GPU could do: the two halves of MFU. No torch."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from minimind.config import ModelConfig

TERA = 1e12
PEAKS: dict[str, tuple[float, float]] = {
    "NVIDIA GeForce RTX 3090": (71.2, 35.6),
    "NVIDIA GeForce RTX 3090 Ti": (80.0, 40.0),
    "NVIDIA GeForce RTX 4080": (97.5, 48.7),
    "NVIDIA GeForce RTX 4080 SUPER": (104.4, 52.2),
    "NVIDIA GeForce RTX 4090": (165.2, 82.6),
    "NVIDIA GeForce RTX 4090 D": (147.1, 73.5),
    "NVIDIA GeForce RTX 5090": (209.5, 104.8),
    "NVIDIA A10": (125.0, 31.2),
    "NVIDIA A30": (165.0, 10.3),
    "NVIDIA A40": (149.7, 37.4),
    "NVIDIA A100": (312.0, 19.5),
    "NVIDIA A800": (312.0, 19.5),
    "NVIDIA H20": (148.0, 44.0),
    "NVIDIA H100": (989.4, 66.9),
    "NVIDIA H100 PCIe": (756.0, 51.2),
    "NVIDIA H100 NVL": (835.5, 60.0),
    "NVIDIA H200": (989.4, 66.9),
    "NVIDIA H200 NVL": (835.5, 60.0),
    "NVIDIA H800": (989.4, 66.9),
    "NVIDIA H800 PCIe": (756.0, 51.2),
    "NVIDIA L4": (121.0, 30.3),
    "NVIDIA L40": (181.0, 90.5),
    "NVIDIA L40S": (362.0, 91.6),
    "NVIDIA RTX A6000": (154.8, 38.7),
    "Tesla T4": (65.0, 8.1),
    "Tesla V100-PCIE": (112.0, 14.0),
    "Tesla V100-SXM2": (125.0, 15.7),
    "Tesla V100S-PCIE": (130.0, 16.4),
}
"""Dense peaks in TFLOP/s, of matrix units in 16 bits with sums in fp32, and of fp32 (which torch does not round to
TF32 unless asked), by the beginning of the device's name; from the vendor's data sheets."""
SAME_CARD = re.compile(r"(?:[ -](?:SXM[45]|PCIE|PCIe|\d+GB|HBM3e?))*")
"""What may follow it: memory and the way it is plugged in. Any other word means another card (Laptop, SUPER, D), or a
part of one (a MIG slice, a virtual GPU), whose peak is not that of the whole."""
NO_BF16 = ("Tesla T4", "Tesla V100")
"""Devices whose matrix units do not know bf16: it runs there at no more than fp32's rate."""


def peak_flops(device_name: str, dtype: str) -> float | None:
    """Dense FLOP/s of a GPU in ``dtype``; None where the table does not know it."""
    fitting = [
        name for name in PEAKS if device_name.startswith(name) and SAME_CARD.fullmatch(device_name, pos=len(name))
    ]
    if not fitting:
        return None
    half, single = PEAKS[max(fitting, key=len)]
    slow = dtype == "float32" or (dtype == "bfloat16" and device_name.startswith(NO_BF16))
    return (single if slow else half) * TERA


@dataclass(frozen=True, kw_only=True)
class Cost:
    """Operations of a training, forward and backward; a multiplication and an addition are two."""

    position: float
    """For each position of a text."""
    pair: float
    """For each pair of a position and one that it attends to in its own text: n (n + 1) / 2 in a text of n."""
    target: float
    """For each target: logits exist for these alone."""

    def of(self, *, positions: int, pairs: int, targets: int) -> float:
        """Of a step over so many."""
        return self.position * positions + self.pair * pairs + self.target * targets


def training_cost(config: ModelConfig, *, adapters: Mapping[str, int] | None) -> Cost:
    """What a step computes; an estimate that leaves out what is small, so never flattered.

    Forward, a linear of C columns and R rows takes 2 C R a position, attention 4 H D a pair and layer (H heads of width
    D). Of a mixture a position goes through the router, the shared experts and k of E others, so each of these, and an
    adapter on it, counts k / E. The backward pass does a product twice, for its two operands (Kaplan et al. 2020,
    section 2.1), where both are wanted: a frozen weight needs no gradient, nor does what comes before the first thing
    that is trained (the input of the first layer of a frozen model; with adapters on o_proj alone, its attention).
    What is computed again to save memory, norms, rotations, the softmax, a frozen teacher and the reference of dpo do
    not count.

    Args:
        config: the model's shape.
        adapters: ranks of the adapters on a frozen model by the path of their linear (:func:`minimind.lora.ranks`);
            None when the model itself is trained.
    """
    c, inner = config.hidden_size, config.intermediate_size
    wide, narrow = (heads * config.head_dim for heads in (config.num_attention_heads, config.num_key_value_heads))
    reached = adapters is None  # whether what comes in needs a gradient: the embedding is trained with the rest
    position = pair = 0.0

    def through(linears: Iterable[tuple[str, int, int, float]]) -> None:
        """Linears side by side (path, columns, rows, share of the positions), and what follows them."""
        nonlocal position, reached
        below = reached
        for path, columns, rows, share in linears:
            rank = 0 if adapters is None else adapters.get(path, 0)
            position += 2.0 * share * columns * rows * (1 + below + (adapters is None))
            position += 2.0 * share * rank * ((2 + below) * columns + 3 * rows)
            reached = reached or rank > 0

    for layer in range(config.num_hidden_layers):
        attention, mlp = (f"model.layers.{layer}.{part}" for part in ("self_attn", "mlp"))
        rows_of = {"q_proj": wide, "k_proj": narrow, "v_proj": narrow}
        through((f"{attention}.{name}", c, rows, 1.0) for name, rows in rows_of.items())
        pair += 4.0 * wide * (1 + 2 * reached)
        through([(f"{attention}.o_proj", wide, c, 1.0)])
        experts = _feed_forwards(config, mlp)
        router = [(f"{mlp}.gate", c, config.num_experts, 1.0)] if config.num_experts else []
        through(
            [
                *router,
                *((f"{path}.{name}", c, inner, share) for path, share in experts for name in ("gate_proj", "up_proj")),
            ]
        )
        through((f"{path}.down_proj", inner, c, share) for path, share in experts)
    target = 2.0 * c * config.vocab_size * (1 + reached + (adapters is None))
    return Cost(position=position, pair=pair, target=target)


def _feed_forwards(config: ModelConfig, path: str) -> list[tuple[str, float]]:
    """Paths of a block's feed-forwards, and the share of the positions that goes through each."""
    if not config.num_experts:
        return [(path, 1.0)]
    share = config.experts_per_token / config.num_experts
    chosen = [(f"{path}.experts.{number}", share) for number in range(config.num_experts)]
    return chosen + [(f"{path}.shared_experts.{number}", 1.0) for number in range(config.num_shared_experts)]
