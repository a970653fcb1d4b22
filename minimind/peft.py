"""Adapters in PEFT's format: adapter_config.json and adapter_model.safetensors, with a scaling of one."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
from torch import Tensor

from minimind.durable import publish, to_json
from minimind.rundir import Reason, RunError

PREFIX = "base_model.model."
CONFIG, TENSORS = "adapter_config.json", "adapter_model.safetensors"


def write(folder: Path, state: Mapping[str, Tensor], *, base: str, layers: int) -> None:
    """Write the adapters of a model (MiniMind's keys) into a folder.

    Args:
        folder: where to.
        state: ``….lora.A.weight`` (rank, in) and ``….lora.B.weight`` (out, rank).
        layers: blocks of the base; a linear that carries an adapter in each is named shortly, as PEFT users do.
        base: name or path of the exported base, for ``AutoPeftModel``; PEFT itself is given the base.

    Raises:
        RunError: for adapters on experts, which transformers keeps in one tensor.
    """
    ranks = {name.removesuffix(".lora.A.weight"): len(value) for name, value in state.items() if ".lora.A." in name}
    inside = [path for path in ranks if ".experts." in path or ".shared_experts." in path]
    if inside:
        raise RunError(
            "these adapters have no form in PEFT",
            why=f"{inside[0]} is an expert; transformers keeps a layer's experts in one tensor",
            remedy="merge them instead: leave --format away, and the adapters become part of the exported weights",
            reason=Reason.DATA_INVALID,
        )
    ((usual, _),) = Counter(ranks.values()).most_common(1)
    counts = Counter(path.rpartition(".")[2] for path in ranks)
    uniform = all(count == layers for count in counts.values())
    others = {path: rank for path, rank in ranks.items() if rank != usual}
    tensors = {
        PREFIX + name.replace(".lora.A.", ".lora_A.").replace(".lora.B.", ".lora_B."): value.contiguous()
        for name, value in state.items()
    }
    told: dict[str, Any] = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base,
        "inference_mode": True,
        "r": usual,
        "lora_alpha": usual,
        "rank_pattern": others,
        "alpha_pattern": others,
        "target_modules": sorted(counts if uniform else ranks),
        "lora_dropout": 0.0,
        "bias": "none",
        "fan_in_fan_out": False,
        "use_rslora": False,
        "use_dora": False,
        "init_lora_weights": True,
        "modules_to_save": None,
    }
    safetensors.torch.save_file(tensors, folder / TENSORS, {"format": "pt"})
    publish(folder / CONFIG, to_json(told), mode=0o644)


def read_back(folder: Path) -> dict[str, Tensor]:
    """What :func:`write` wrote, under MiniMind's keys."""
    return {
        name.removeprefix(PREFIX).replace(".lora_A.", ".lora.A.").replace(".lora_B.", ".lora.B."): value
        for name, value in safetensors.torch.load_file(folder / TENSORS).items()
    }
