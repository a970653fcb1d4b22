"""Hugging Face's format of weights: config.json and safetensors, written for its own architectures and read back.

| ours | theirs |
|---|---|
| minimind2 | LlamaForCausalLM |
| minimind2, mixture of experts | Qwen2MoeForCausalLM |
| minimind3 | Qwen3ForCausalLM |
| minimind3, mixture of experts | Qwen3MoeForCausalLM |

Qwen2Moe's shared expert passes a sigmoid gate. With a gate of zeros, which is one half, and the expert's last matrix
doubled, it is MiniMind's shared expert; halving and doubling are exact in binary arithmetic.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from minimind.config import ModelConfig, Yarn
from minimind.rundir import Reason, RunError
from minimind.shapes import infer_config
from minimind.weights import refuse_odd_tensors

ARCHITECTURES = {
    "llama": "LlamaForCausalLM",
    "qwen2_moe": "Qwen2MoeForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
    "qwen3_moe": "Qwen3MoeForCausalLM",
}
MUST_BE: dict[str, tuple[Any, ...]] = {
    "hidden_act": ("silu",),
    "attention_bias": (False,),
    "mlp_bias": (False,),
    "use_sliding_window": (False,),
    "quantization_config": (),
    "mlp_only_layers": ([],),
    "decoder_sparse_step": (1,),
    "pretraining_tp": (1,),
}
"""Settings of theirs with the values that MiniMind's decoder has; absent or null is as good."""
LIMIT_BYTES = 1 << 24
"""Largest config.json or index."""
HEAD, EMBEDDING, SHARED = "lm_head.weight", "model.embed_tokens.weight", "mlp.shared_experts.0."


def is_folder(path: Path) -> bool:
    """Whether this looks like a folder in Hugging Face's format."""
    return (path / "config.json").is_file()


def model_type(config: ModelConfig) -> str:
    """The architecture that computes what this decoder does.

    Raises:
        RunError: when there is none.
    """
    if config.num_experts and config.num_shared_experts > (config.arch == "minimind2") * 1:
        raise RunError(
            f"a mixture with {config.num_shared_experts} shared experts has no equal in transformers",
            why="Qwen2Moe has one, Qwen3Moe none; a folder that computes something else would be of no use",
            remedy="keep it in MiniMind's format: --format minimind",
            reason=Reason.DATA_INVALID,
        )
    if config.arch == "minimind3":
        return "qwen3_moe" if config.num_experts else "qwen3"
    return "qwen2_moe" if config.num_shared_experts else "llama"


def describe(config: ModelConfig, *, dtype: str, ids: Mapping[str, int]) -> dict[str, Any]:
    """config.json: sizes, rotary positions in the form of transformers 4 and 5, and the special tokens' ``ids``."""
    kind = model_type(config)
    rope: dict[str, Any] = {"rope_type": "default"}
    if config.yarn is not None:
        rope = {
            "rope_type": "yarn",
            "factor": config.yarn.factor,
            "original_max_position_embeddings": config.yarn.original_length,
            "beta_fast": config.yarn.beta_fast,
            "beta_slow": config.yarn.beta_slow,
            "attention_factor": config.yarn.attention_factor,
        }
    told: dict[str, Any] = {
        "architectures": [ARCHITECTURES[kind]],
        "model_type": kind,
        "vocab_size": config.vocab_size,
        "hidden_size": config.hidden_size,
        "intermediate_size": config.intermediate_size,
        "num_hidden_layers": config.num_hidden_layers,
        "num_attention_heads": config.num_attention_heads,
        "num_key_value_heads": config.num_key_value_heads,
        "head_dim": config.head_dim,
        "hidden_act": "silu",
        "max_position_embeddings": config.max_position_embeddings,
        "rms_norm_eps": config.rms_norm_eps,
        "rope_theta": config.rope_theta,
        "rope_scaling": rope if config.yarn is not None else None,
        "rope_parameters": {"rope_theta": config.rope_theta, **rope},
        "attention_bias": False,
        "attention_dropout": 0.0,
        "tie_word_embeddings": True,
        "use_cache": True,
        **ids,
        "dtype": dtype,
        "torch_dtype": dtype,
    }
    if kind == "llama":
        told["mlp_bias"] = False
    else:
        told["use_sliding_window"] = False
    if config.num_experts:
        told |= {
            "moe_intermediate_size": config.intermediate_size,
            "num_experts": config.num_experts,
            "num_experts_per_tok": config.experts_per_token,
            "norm_topk_prob": True,
            "decoder_sparse_step": 1,
            "mlp_only_layers": [],
            "output_router_logits": False,
        }
    if kind == "qwen2_moe":
        told |= {"shared_expert_intermediate_size": config.intermediate_size, "qkv_bias": False}
    return told


def to_theirs(state: Mapping[str, Tensor], config: ModelConfig) -> dict[str, Tensor]:
    """Tensors under their names: the tied head once, a shared expert doubled behind a gate of one half."""
    theirs = {name: value for name, value in state.items() if name != HEAD}
    if model_type(config) == "qwen2_moe":
        for name in [name for name in theirs if f".{SHARED}" in name]:
            value = theirs.pop(name)
            renamed = name.replace(SHARED, "mlp.shared_expert.")
            theirs[renamed] = value * 2 if name.endswith("down_proj.weight") else value
            gate = f"{name.partition(SHARED)[0]}mlp.shared_expert_gate.weight"
            theirs.setdefault(gate, value.new_zeros(1, config.hidden_size))
    return theirs


def to_ours(theirs: Mapping[str, Tensor], folder: Path) -> dict[str, Tensor]:
    """The opposite of :func:`to_theirs`.

    Raises:
        RunError: when the head is not tied, or a shared expert has a gate of its own.
    """
    state: dict[str, Tensor] = {}
    for name, value in theirs.items():
        if name.endswith("mlp.shared_expert_gate.weight"):
            if value.any():
                raise _refused(folder, f"{name} is not zero; MiniMind's shared expert has no gate")
        elif ".mlp.shared_expert." in name:
            ours = name.replace("mlp.shared_expert.", SHARED)
            state[ours] = value / 2 if name.endswith("down_proj.weight") else value
        else:
            state[name] = value
    if EMBEDDING in state and not torch.equal(state.setdefault(HEAD, state[EMBEDDING]), state[EMBEDDING]):
        raise _refused(folder, f"{HEAD} differs from {EMBEDDING}; MiniMind's are one matrix")
    return state


def read(folder: Path) -> tuple[dict[str, Tensor], ModelConfig]:
    """State dict (as stored) and shape from config.json and safetensors; nothing is run, nothing read outside.

    Raises:
        RunError: DATA_INVALID when it is damaged, or of a decoder that MiniMind's cannot compute.
    """
    config = _json(folder / "config.json")
    state = to_ours(_tensors(folder), folder)
    return state, _shape(state, config, folder)


def _refused(folder: Path, why: str, remedy: str = "") -> RunError:
    return RunError(
        f"{folder} holds no model of MiniMind's form",
        why=why,
        remedy=remedy or "give a folder that `python -m minimind export` wrote, or copy it again from its source",
        reason=Reason.DATA_INVALID,
    )


def _json(path: Path) -> dict[str, Any]:
    try:
        with open(path, "rb") as file:
            data = file.read(LIMIT_BYTES + 1)
        loaded = json.loads(data) if len(data) <= LIMIT_BYTES else None
    except (OSError, ValueError, RecursionError) as error:
        raise _refused(path.parent, f"{path.name} cannot be read: {error}") from error
    if not isinstance(loaded, dict):
        raise _refused(path.parent, f"{path.name} is no JSON object, or too large")
    return loaded


def _tensors(folder: Path) -> dict[str, Tensor]:
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        where = _json(index).get("weight_map")
        if not isinstance(where, dict) or not all(isinstance(name, str) for name in where.values()):
            raise _refused(folder, f"{index.name} has no weight_map of names")
        names = sorted(set(where.values()))
    else:
        where, names = None, ["model.safetensors"]
    state: dict[str, Tensor] = {}
    for name in names:
        if Path(name).name != name or "\\" in name or not name.endswith(".safetensors"):
            raise _refused(folder, f"its index names {name!r}, which is no safetensors file of this folder")
        path = folder / name
        if not path.is_file():
            raise _refused(folder, f"{name} is missing")
        try:
            part = safetensors.torch.load_file(path)
        except (safetensors.SafetensorError, OSError, ValueError, KeyError, AttributeError) as error:
            raise _refused(folder, f"{name} cannot be read: {error}") from error
        refuse_odd_tensors(part, path, file_bytes=path.stat().st_size)
        strays = [key for key in part if key in state or (where is not None and where.get(key) != name)]
        if strays:
            raise _refused(folder, f"{name} holds {strays[0]}, which the index expects elsewhere")
        state |= part
    lacking = [key for key in where or () if key not in state]
    if lacking:
        raise _refused(folder, f"{lacking[0]} is named by the index and in no file")
    return state


def _shape(state: Mapping[str, Tensor], config: Mapping[str, Any], folder: Path) -> ModelConfig:
    kind = config.get("model_type")
    if kind not in ARCHITECTURES:
        raise _refused(folder, f"it is a model of type {kind!r}; MiniMind's are {', '.join(ARCHITECTURES)}")
    moe = kind.endswith("_moe")
    odd = {key: config[key] for key, allowed in MUST_BE.items() if config.get(key) is not None} | (
        {"norm_topk_prob": config.get("norm_topk_prob")} if moe else {}
    )
    for key, value in odd.items():
        if value not in MUST_BE.get(key, (True,)):
            raise _refused(folder, f"{key} is {value!r}, which MiniMind's decoder has not")
    rope = _rope(config, folder)
    width, heads = config.get("hidden_size"), config.get("num_attention_heads")
    divided = width // heads if isinstance(width, int) and isinstance(heads, int) and heads > 0 else None
    told = {
        "head_dim": config.get("head_dim") or divided,
        "rms_norm_eps": config.get("rms_norm_eps", 1e-6),
        "rope_theta": rope.get("rope_theta", config.get("rope_theta", 10000.0)),
        "max_position_embeddings": config.get("max_position_embeddings"),
        "experts_per_token": config.get("num_experts_per_tok") if moe else 0,
    }
    shaped = infer_config(state, {"model": told}, source=str(folder))
    said = {
        "vocab_size": shaped.vocab_size,
        "hidden_size": shaped.hidden_size,
        "num_hidden_layers": shaped.num_hidden_layers,
        "num_attention_heads": shaped.num_attention_heads,
        "num_key_value_heads": shaped.num_key_value_heads,
        "moe_intermediate_size" if moe else "intermediate_size": shaped.intermediate_size,
        **({"num_experts": shaped.num_experts} if moe else {}),
    }
    wrong = [f"{key} is {config.get(key)!r}, the tensors' is {value}" for key, value in said.items()
             if config.get(key, value) != value]  # fmt: skip
    if wrong or model_type(shaped) != kind:
        raise _refused(folder, "; ".join(wrong) or f"model_type is {kind}, the tensors are {model_type(shaped)}'s")
    return dataclasses.replace(shaped, yarn=_yarn(rope, shaped, folder))


def _rope(config: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    merged: dict[str, Any] = {}
    for key in ("rope_parameters", "rope_scaling"):
        value = config.get(key) or {}
        if not isinstance(value, dict):
            raise _refused(folder, f"{key} is no object")
        merged |= value
    return merged


def _yarn(rope: Mapping[str, Any], shaped: ModelConfig, folder: Path) -> Yarn | None:
    kind = rope.get("rope_type", rope.get("type", "default"))
    if kind == "default":
        return None
    unknown = [key for key in ("mscale", "mscale_all_dim") if rope.get(key)]
    unknown += ["truncate"] if rope.get("truncate") is False else []
    if kind != "yarn" or unknown:
        raise _refused(folder, f"its positions are of the kind {', '.join([str(kind), *unknown])}")
    factor = rope.get("factor")
    try:
        made = Yarn(
            factor=float(factor),  # type: ignore[arg-type]
            original_length=int(rope.get("original_max_position_embeddings") or shaped.max_position_embeddings),
            beta_fast=float(rope.get("beta_fast") or 32),
            beta_slow=float(rope.get("beta_slow") or 1),
            attention_factor=float(rope.get("attention_factor") or 0.1 * math.log(float(factor)) + 1),  # type: ignore[arg-type]
        )
    except (TypeError, ValueError) as error:
        raise _refused(folder, f"its yarn settings are no numbers: {error}") from error
    if not (made.factor >= 1 and made.original_length >= 1 and made.beta_fast > made.beta_slow > 0):
        raise _refused(folder, f"its yarn settings make no sense: {made}")
    return made
