"""Pretraining: every next token of raw text that is not padding."""

from __future__ import annotations

import functools
from collections.abc import Mapping

from torch import Tensor

from minimind.batches import Batch
from minimind.losses import linear_cross_entropy_sum
from minimind.stages.base import Forward, Stage


class Pretrain(Stage):
    """Next-token cross-entropy over whole texts."""

    def loss(self, forward: Forward, batch: Batch) -> tuple[Tensor, int, Mapping[str, Tensor]]:
        """Cross-entropy summed over the batch's N targets."""
        head = functools.partial(linear_cross_entropy_sum, targets=batch.targets)
        return forward(batch.ids, lengths=batch.lengths, select=batch.select, head=head), batch.count, {}
