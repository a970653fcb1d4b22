"""Floating-point operations of a training step, and those that a GPU could do: the two halves of MFU. No torch."""

from __future__ import annotations

from minimind.config import ModelConfig

TERA = 1e12
PEAKS: dict[str, tuple[float, float]] = {
    "NVIDIA GeForce RTX 3090": (71.2, 35.6),
    "NVIDIA GeForce RTX 3090 Ti": (80.0, 40.0),
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
    "NVIDIA H800": (989.4, 66.9),
    "NVIDIA H800 PCIe": (756.0, 51.2),
    "NVIDIA L4": (121.0, 30.3),
    "NVIDIA L40": (181.0, 90.5),
    "NVIDIA L40S": (362.0, 91.6),
    "Tesla T4": (65.0, 8.1),
    "Tesla V100-PCIE": (112.0, 14.0),
    "Tesla V100-SXM2": (125.0, 15.7),
}
"""Dense peaks in TFLOP/s, of matrix units in 16 bits with sums in fp32, and of fp32 (which torch does not round to
TF32 unless asked), by the beginning of the device's name; from the vendor's data sheets."""
NO_BF16 = ("Tesla T4", "Tesla V100")
"""Devices whose matrix units do not know bf16: it runs there at no more than fp32's rate."""


def peak_flops(device_name: str, dtype: str) -> float | None:
    """Dense FLOP/s of a GPU in ``dtype``; None where the table does not know it (a laptop's chip is another one)."""
    fitting = [name for name in PEAKS if device_name == name or device_name.startswith((f"{name} ", f"{name}-"))]
    if not fitting or "Laptop" in device_name or "Max-Q" in device_name:
        return None
    half, single = PEAKS[max(fitting, key=len)]
    slow = dtype == "float32" or (dtype == "bfloat16" and device_name.startswith(NO_BF16))
    return (single if slow else half) * TERA


def training_flops(config: ModelConfig, *, positions: int, pairs: int, targets: int, adapters: int | None) -> float:
    """Operations of forward and backward over texts; an estimate that leaves out what is small, so never flattered.

    Forward, a multiplication and an addition being two operations::

        2 P L (2 C H D + 2 C K D + 3 C I X + C E)  +  4 L H D A  +  2 C V N

    with P positions, L layers, C hidden, H heads and K key/value heads of width D, I the inner width, X the experts
    that a token goes through (the chosen and the shared ones; 1 for a dense model), E the width of the router, A pairs
    of a position and one that it attends to in its own text, V entries and N targets (logits exist for targets alone).
    The backward pass does each product twice, for its two operands (Kaplan et al. 2020, section 2.1), except that a
    frozen weight needs no gradient. Attention has no weights and is always done twice. What is computed again to save
    memory, norms, rotations, the softmax, a frozen teacher and the reference of dpo do not count.

    Args:
        config: the model's shape.
        positions: P.
        pairs: A, n (n + 1) / 2 for a text of n positions.
        targets: N.
        adapters: parameters of adapters on a frozen model; None when the model itself is trained.
    """
    c, d = config.hidden_size, config.head_dim
    heads, kv = config.num_attention_heads, config.num_key_value_heads
    through = config.experts_per_token + config.num_shared_experts if config.num_experts else 1
    weights = 2 * c * heads * d + 2 * c * kv * d + 3 * c * config.intermediate_size * through + c * config.num_experts
    linear = 2.0 * positions * config.num_hidden_layers * weights + 2.0 * c * config.vocab_size * targets
    attention = 4.0 * config.num_hidden_layers * heads * d * pairs
    times, more = (3, 0.0) if adapters is None else (2, 3 * 2.0 * positions * adapters)
    return times * linear + 3 * attention + more
