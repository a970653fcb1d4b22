"""Supervised fine-tuning of all weights: only what the assistant says is a target."""

from __future__ import annotations

import functools
from collections.abc import Mapping

from torch import Tensor

from minimind.batches import Batch
from minimind.losses import linear_cross_entropy_sum
from minimind.stages.base import Forward, Stage


class FullSft(Stage):
    """Cross-entropy over answer tokens, each answer's ``<|im_end|>`` and newline included."""

    def loss(self, forward: Forward, batch: Batch) -> tuple[Tensor, int, Mapping[str, Tensor]]:
        """Cross-entropy summed over the batch's N answer tokens."""
        head = functools.partial(linear_cross_entropy_sum, targets=batch.targets)
        return forward(batch.ids, lengths=batch.lengths, select=batch.select, head=head), batch.count, {}
