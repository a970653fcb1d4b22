"""The table of stages: name -> class. Adding one is its file, this line and a row in the catalog."""

from __future__ import annotations

from minimind.catalog import CATALOG
from minimind.config import TrainConfig
from minimind.stages.base import Stage
from minimind.stages.distillation import Distillation
from minimind.stages.dpo import Dpo
from minimind.stages.full_sft import FullSft
from minimind.stages.lora import LoraSft
from minimind.stages.pretrain import Pretrain
from minimind.stages.reason import Reason

STAGES: dict[str, type[Stage]] = {
    "pretrain": Pretrain,
    "full_sft": FullSft,
    "dpo": Dpo,
    "lora": LoraSft,
    "reason": Reason,
    "distillation": Distillation,
}


def make(name: str, config: TrainConfig) -> Stage:
    """The stage of that name, with its row of the catalog."""
    return STAGES[name](config, CATALOG[name])
