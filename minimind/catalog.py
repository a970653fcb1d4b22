"""What each stage reads and writes, as a table. Torch-free: the launcher reads it on the laptop.

Adding a stage is one row here, one file in ``minimind/stages`` and one entry in its table.
"""

from __future__ import annotations

from dataclasses import dataclass

PATH_FLAGS = ("data_path", "tokenizer", "from_weight", "from_lora", "teacher_weight")
"""Trainer flags whose value may be a path that the launcher has to bring to the host."""


@dataclass(frozen=True, kw_only=True)
class StageInfo:
    """One stage: its default data file, the weights it starts from and those it writes (both without size suffix)."""

    name: str
    default_data: str
    starts_from: str | None
    writes: str
    minimind3_writes: str | None = None
    line: str = "chat"
    """What a line of its data holds: text, chat (a conversation) or pair."""


CATALOG: dict[str, StageInfo] = {
    info.name: info
    for info in (
        StageInfo(
            name="tokenizer", default_data="pretrain_hq.jsonl", starts_from=None, writes="tokenizer", line="text"
        ),
        StageInfo(name="pretrain", default_data="pretrain_hq.jsonl", starts_from=None, writes="pretrain", line="text"),
        StageInfo(name="full_sft", default_data="sft_mini_512.jsonl", starts_from="pretrain", writes="full_sft"),
        StageInfo(
            name="dpo",
            default_data="dpo.jsonl",
            starts_from="full_sft",
            writes="rlhf",
            minimind3_writes="dpo",
            line="pair",
        ),
        StageInfo(name="lora", default_data="{lora_name}.jsonl", starts_from="full_sft", writes="lora/{lora_name}"),
        StageInfo(name="reason", default_data="r1_mix_1024.jsonl", starts_from="rlhf", writes="reason"),
        StageInfo(name="distillation", default_data="sft_xxx.jsonl", starts_from="full_sft", writes="full_dist"),
    )
}


@dataclass(frozen=True, kw_only=True)
class Preset:
    """A published model's size."""

    hidden_size: int
    num_hidden_layers: int
    use_moe: bool = False


PRESETS: dict[tuple[str, str], Preset] = {
    ("minimind2", "small"): Preset(hidden_size=512, num_hidden_layers=8),
    ("minimind2", "base"): Preset(hidden_size=768, num_hidden_layers=16),
    ("minimind2", "moe"): Preset(hidden_size=640, num_hidden_layers=8, use_moe=True),
    ("minimind3", "base"): Preset(hidden_size=768, num_hidden_layers=8),
    ("minimind3", "moe"): Preset(hidden_size=768, num_hidden_layers=8, use_moe=True),
}
DEFAULT_PRESET = {"minimind2": "small", "minimind3": "base"}

TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json")


def weights_file(weight: str, *, hidden_size: int = 512, use_moe: bool = False) -> str:
    """The original's name of a weights file relative to out/: ``full_sft_512.pth``, ``lora/lora_identity_512.pth``."""
    return f"{weight}_{hidden_size}{'_moe' if use_moe else ''}.pth"


def written_file(info: StageInfo, *, arch: str, hidden_size: int, use_moe: bool, lora_name: str) -> str:
    """What a stage writes, relative to out/. The name of an adapter says nothing of the experts below it."""
    written = info.minimind3_writes if arch == "minimind3" and info.minimind3_writes else info.writes
    is_adapter = "{lora_name}" in written
    return weights_file(
        written.format(lora_name=lora_name), hidden_size=hidden_size, use_moe=use_moe and not is_adapter
    )
