"""Adapters on a frozen model, trained like supervised fine-tuning and synchronised like everything else."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from minimind import lora
from minimind.batches import Batch
from minimind.config import LoraConfig
from minimind.losses import linear_cross_entropy_sum
from minimind.model import MiniMind
from minimind.stages.base import Forward, Stage


class LoraSft(Stage):
    """Cross-entropy over answer tokens; only the adapters learn and only they are saved."""

    config: LoraConfig

    def prepare(self, model: MiniMind, say: Callable[[str], None]) -> None:
        """Inject new adapters, or those of ``--from_lora``, and freeze the rest."""
        if self.config.from_lora:
            lora.apply(model, self.config.from_lora, say=say)
        else:
            lora.inject(model, rank=self.config.lora_rank, targets=self.config.lora_targets)

    @property
    def inputs(self) -> tuple[Path, ...]:
        """The adapter to start from."""
        return (self.config.from_lora,) if self.config.from_lora else ()

    @property
    def needs_start_on_resume(self) -> bool:
        """The frozen base is not in a checkpoint."""
        return True

    def loss(self, forward: Forward, batch: Batch) -> tuple[Tensor, int, Mapping[str, Tensor]]:
        """Cross-entropy summed over the batch's N answer tokens."""
        head = functools.partial(linear_cross_entropy_sum, targets=batch.targets)
        return forward(batch.ids, lengths=batch.lengths, select=batch.select, head=head), batch.count, {}

    def sidecar(self, model: MiniMind) -> dict[str, Any]:
        """Ranks and targets; the file's keys and shapes say them too."""
        return {"lora": lora.describe(model)}

    def weights(self, model: MiniMind) -> dict[str, Tensor]:
        """The adapters alone."""
        return lora.adapter_state(model)
