"""Supervised fine-tuning of all weights: only what the assistant says is a target."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from minimind.batches import Batch
from minimind.losses import cross_entropy_sum
from minimind.stages.base import Forward, Stage


class FullSft(Stage):
    """Cross-entropy over answer tokens, each answer's ``<|im_end|>`` and newline included."""

    def loss(self, forward: Forward, batch: Batch) -> tuple[Tensor, int, Mapping[str, Tensor]]:
        """Cross-entropy summed over the batch's N answer tokens."""
        logits = forward(batch.ids, lengths=batch.lengths, select=batch.select)  # (N, V)
        return cross_entropy_sum(logits, batch.targets), batch.count, {}
