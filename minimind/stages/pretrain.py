"""Pretraining: every next token of raw text that is not padding."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from minimind.batches import Batch
from minimind.losses import cross_entropy_sum
from minimind.stages.base import Forward, Stage


class Pretrain(Stage):
    """Next-token cross-entropy over whole texts."""

    def loss(self, forward: Forward, batch: Batch) -> tuple[Tensor, int, Mapping[str, Tensor]]:
        """Cross-entropy summed over the batch's N targets."""
        logits = forward(batch.ids, lengths=batch.lengths, select=batch.select)  # (N, V)
        return cross_entropy_sum(logits, batch.targets), batch.count, {}
