"""What a person of the original expects of each stage, by generation. Data alone."""

from __future__ import annotations

from typing import Any

DEFAULTS: dict[tuple[str, str], dict[str, Any]] = {
    ("minimind2", "pretrain"): {"learning_rate": 5e-4, "batch_size": 32, "accumulation_steps": 8, "epochs": 1},
    ("minimind2", "full_sft"): {"learning_rate": 5e-7, "batch_size": 16, "epochs": 2},
    ("minimind2", "dpo"): {"learning_rate": 1e-8, "batch_size": 4, "epochs": 2, "max_seq_len": 1024},
    ("minimind2", "lora"): {"learning_rate": 1e-4, "batch_size": 32, "epochs": 10},
    ("minimind2", "reason"): {"learning_rate": 1e-6, "batch_size": 8, "epochs": 1, "max_seq_len": 1024},
    ("minimind2", "distillation"): {"learning_rate": 5e-6, "batch_size": 32, "epochs": 6},
    ("minimind3", "pretrain"): {"batch_size": 32, "accumulation_steps": 8, "epochs": 2, "max_seq_len": 340},
    ("minimind3", "full_sft"): {"learning_rate": 1e-5, "batch_size": 16, "epochs": 2, "max_seq_len": 768},
    ("minimind3", "dpo"): {
        "learning_rate": 4e-8,
        "batch_size": 4,
        "epochs": 1,
        "max_seq_len": 1024,
        "beta": 0.15,
        "length_normalised": False,
    },
    ("minimind3", "lora"): {"learning_rate": 1e-4, "batch_size": 32, "epochs": 10, "max_seq_len": 340, "lora_rank": 16},
    ("minimind3", "reason"): {"learning_rate": 1e-6, "batch_size": 8, "epochs": 1, "max_seq_len": 1024},
    ("minimind3", "distillation"): {
        "learning_rate": 5e-6,
        "batch_size": 32,
        "epochs": 6,
        "max_seq_len": 340,
        "alpha": 0.5,
        "temperature": 1.5,
    },
}
COMMON: dict[str, dict[str, Any]] = {"minimind2": {}, "minimind3": {"hidden_size": 768, "lr_schedule": "minimind3"}}
"""What a generation's stages share."""


def of_stage(arch: str, stage: str) -> dict[str, Any]:
    """The generation's defaults of a stage where they differ from the dataclass's."""
    if stage == "tokenizer":
        return {}
    return {"arch": arch, **COMMON[arch], **DEFAULTS[arch, stage]}
