"""How large a training is: parameters, memory of a rank, bytes on the disk; from the config alone, without torch."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

from minimind.config import LORA_TARGETS, ModelConfig

FP32, FP16 = 4, 2
PASS_BYTES = 768 << 20
LEAST_TOKENS = 1024
PROCESS_BYTES = 350 << 20
"""An interpreter with torch loaded and nothing in it (a GPU's context is of the same order, on the GPU)."""


def parameters(config: ModelConfig) -> int:
    """Parameters of a decoder; the tied head counts once."""
    c, d = config.hidden_size, config.head_dim
    heads, kv = config.num_attention_heads, config.num_key_value_heads
    attention = 2 * c * heads * d + 2 * c * kv * d + (2 * d if config.qk_norm else 0)
    mlp = 3 * c * config.intermediate_size
    if config.num_experts:
        mlp = (config.num_experts + config.num_shared_experts) * mlp + config.num_experts * c
    return config.vocab_size * c + config.num_hidden_layers * (attention + mlp + 2 * c) + c


def adapter_parameters(config: ModelConfig, *, rank: int, targets: str = "square") -> int:
    """Parameters of adapters on the linears of every block that ``targets`` means (as ``--lora_targets``)."""
    c, wide = config.hidden_size, config.num_attention_heads * config.head_dim
    narrow, inner = config.num_key_value_heads * config.head_dim, config.intermediate_size
    feed_forwards = max(1, config.num_experts + config.num_shared_experts)
    shapes = [("q_proj", c, wide), ("k_proj", c, narrow), ("v_proj", c, narrow), ("o_proj", wide, c)]
    shapes += [("gate_proj", c, inner), ("up_proj", c, inner), ("down_proj", inner, c)] * feed_forwards
    if targets == "square":
        shapes += [("gate", c, config.num_experts)] if config.num_experts else []
        chosen = [(width, height) for _, width, height in shapes if width == height]
    else:
        named = LORA_TARGETS if targets == "all" else tuple(name.strip() for name in targets.split(","))
        chosen = [(width, height) for name, width, height in shapes if name in named]
    return config.num_hidden_layers * rank * sum(width + height for width, height in chosen)


@dataclass(frozen=True, kw_only=True)
class Memory:
    """Bytes that one rank needs while it trains, part by part."""

    weights: int
    gradients: int
    optimizer: int
    frozen: int
    activations: int
    checkpoint: int = 0
    process: int = PROCESS_BYTES

    @property
    def total(self) -> int:
        """All parts."""
        return sum(dataclasses.asdict(self).values())


def pass_tokens(config: ModelConfig) -> int:
    """Tokens of a pass that keeps about :data:`PASS_BYTES` for its gradient, and no fewer than :data:`LEAST_TOKENS`."""
    return max(LEAST_TOKENS, PASS_BYTES // (FP32 * _kept(config)))


def _kept(config: ModelConfig) -> int:
    """Numbers that a token leaves behind for the gradient, in all layers; see :func:`memory`."""
    chosen = max(1, config.experts_per_token + config.num_shared_experts)
    routed = 3 * config.experts_per_token * config.hidden_size if config.num_experts else 0
    return config.num_hidden_layers * (11 * config.hidden_size + 4 * config.intermediate_size * chosen + routed)


def memory(
    config: ModelConfig,
    *,
    trained: int,
    frozen: int,
    tokens: int,
    targets: int,
    teacher_logits: bool = False,
    saves_aside: bool = False,
) -> Memory:
    """An estimate for one rank whose largest pass has so many tokens and computes so many targets' logits.

    Weights and gradients are fp32, AdamW keeps two more fp32 numbers a trained parameter, ``frozen`` parameters (a
    reference, a teacher) are held once. What a pass keeps for its gradient, in fp32 numbers: 11 C + 4 I a token and
    layer (the norms' inputs and outputs, queries, keys and values as attention saw them, the four inner rows of the
    feed-forward; a mixture keeps the latter for each expert that a token went to), and 2 C a target (its last state and
    the gradient of it: logits exist for a few rows at a time). Distillation compares whole distributions: 5 V a target
    (both models' logits, their log-softmax, a gradient). With ``saves_aside`` a copy of the state stays in main memory
    while it is written. Measured on CPUs it is within a factor of 2 of the resident set at its peak; autocast to 16
    bits takes less.
    """
    kept = tokens * _kept(config)
    logits = targets * (5 * config.vocab_size if teacher_logits else 2 * config.hidden_size)
    return Memory(
        weights=FP32 * parameters(config) + (FP32 * trained if trained < parameters(config) else 0),
        gradients=FP32 * trained,
        optimizer=2 * FP32 * trained,
        frozen=FP32 * frozen,
        activations=FP32 * (kept + logits),
        checkpoint=3 * FP32 * trained if saves_aside else 0,
    )


@dataclass(frozen=True, kw_only=True)
class Disk:
    """Bytes that a run writes: a checkpoint, all of them at their most, the final weights."""

    checkpoint: int
    checkpoints: int
    export: int
    to_come: int
    """What the run will still take beside what lies there already."""

    @property
    def total(self) -> int:
        """The most that the run will hold."""
        return self.checkpoints + self.export


def disk(*, trained: int, exported: int, saves: int, keep: int, held: int) -> Disk:
    """Checkpoints are fp32 weights and AdamW's two numbers of each.

    The best one stays beside the newest, and the next is whole before the oldest goes.

    Args:
        trained: parameters in a checkpoint.
        exported: parameters of the final weights, fp16.
        saves: checkpoints that the run still writes.
        keep: checkpoints kept.
        held: checkpoints that lie there already.
    """
    checkpoint, export = 3 * FP32 * trained, FP16 * exported
    most = max(held, min(held + saves, keep + 2))
    to_come = max(min(saves, 1), most - held) * checkpoint + export
    return Disk(checkpoint=checkpoint, checkpoints=most * checkpoint, export=export, to_come=to_come)
