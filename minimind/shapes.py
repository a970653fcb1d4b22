"""What model a weights file holds: its keys and shapes say, and a description beside it says what these cannot."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from minimind.config import ModelConfig, UsageError
from minimind.rundir import Reason, RunError

UNSHAPED: dict[str, tuple[type, float, float]] = {
    "head_dim": (int, 2, 4096),
    "rms_norm_eps": (float, 1e-12, 0.1),
    "rope_theta": (float, 1, 1e12),
    "max_position_embeddings": (int, 1, 1 << 24),
    "experts_per_token": (int, 0, 1024),
}
"""What the shapes of a file cannot say: type, least and most. The sidecar does, else the generation's default holds."""


def infer_config(state: Mapping[str, Tensor], sidecar: Mapping[str, Any], *, source: str) -> ModelConfig:
    """The model's shape from a weights file's keys and shapes; its sidecar adds what these cannot say (the heads).

    Raises:
        RunError: when the keys are no MiniMind decoder's, or the sidecar says what no model can have.
    """
    told = _told(sidecar, source)
    try:
        return _shaped(state, told)
    except (KeyError, ValueError, IndexError, TypeError, ArithmeticError, UsageError) as error:
        raise RunError(
            f"{source} holds no MiniMind model",
            why=f"a key that every decoder has is missing or of another form: {error}",
            remedy="give a weights file such as full_sft_512.pth; an adapter goes to --from_lora",
            reason=Reason.DATA_INVALID,
        ) from error


def _shaped(state: Mapping[str, Tensor], told: Mapping[str, Any]) -> ModelConfig:
    vocab_size, hidden_size = state["model.embed_tokens.weight"].shape
    numbers = {int(key.split(".")[2]) for key in state if key.startswith("model.layers.")}
    if not numbers or not vocab_size or not hidden_size or numbers != set(range(len(numbers))):
        raise ValueError(f"{len(numbers)} layers, not numbered from 0 on, or an empty embedding")
    first = "model.layers.0."
    q_norm, gate = state.get(f"{first}self_attn.q_norm.weight"), state.get(f"{first}mlp.gate.weight")
    base = ModelConfig.for_arch(
        "minimind2" if q_norm is None else "minimind3",
        hidden_size=hidden_size,
        num_hidden_layers=len(numbers),
        vocab_size=vocab_size,
        use_moe=gate is not None,
    )
    head_dim = int(told.get("head_dim", base.head_dim)) if q_norm is None else len(q_norm)
    expert = "mlp." if gate is None else "mlp.experts.0."
    experts, shared = (
        {key.split(".")[5] for key in state if key.startswith(f"{first}mlp.{kind}.")}
        for kind in ("experts", "shared_experts")
    )
    rows, key_rows = (state[f"{first}self_attn.{name}_proj.weight"].shape[0] for name in "qk")
    if head_dim % 2 or rows % head_dim or key_rows % head_dim or not key_rows or rows % key_rows:
        raise ValueError(f"{rows} query rows and {key_rows} key rows are no heads of {head_dim}")
    config = dataclasses.replace(
        base,
        **{key: value for key, value in told.items() if key != "head_dim"},
        num_experts=0 if gate is None else len(gate),
        num_shared_experts=len(shared),
        head_dim=head_dim,
        num_attention_heads=rows // head_dim,
        num_key_value_heads=key_rows // head_dim,
        intermediate_size=state[f"{first}{expert}gate_proj.weight"].shape[0],
    )
    if len(experts) != config.num_experts or (experts and not 1 <= config.experts_per_token <= len(experts)):
        raise ValueError(f"{len(experts)} experts behind a gate for {config.num_experts}")
    return config


def _told(sidecar: Mapping[str, Any], source: str) -> dict[str, Any]:
    """What the sidecar says and shapes cannot, as numbers that a model can have."""
    model = sidecar.get("model") or {}
    if not isinstance(model, dict):
        raise damaged(source, "its `model` is no object")
    told: dict[str, Any] = {}
    for name, (kind, least, most) in UNSHAPED.items():
        value = model.get(name)
        if value is None:
            continue
        number = isinstance(value, int | float) and not isinstance(value, bool)
        if not number or (kind is int and value != int(value)) or not least <= value <= most:
            raise damaged(source, f"{name} is {str(value)[:40]!r}, possible is {least:g} to {most:g}")
        told[name] = kind(value)
    return told


def damaged(source: str, why: str) -> RunError:
    """The paragraph for a description that cannot be used."""
    return RunError(
        f"the description beside {source} is damaged",
        why=why,
        remedy="copy its .json again with the weights; or move it away: then the generation's defaults hold",
        reason=Reason.DATA_INVALID,
    )
