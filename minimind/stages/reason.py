"""Fine-tuning on answers that think aloud: tokens of <think> </think> <answer> </answer> weigh ten times as much."""

from __future__ import annotations

import functools
from collections.abc import Mapping

import numpy as np
from torch import Tensor

from minimind.batches import Batch, Weigh
from minimind.config import ReasonConfig
from minimind.losses import linear_cross_entropy_sum
from minimind.shards import IN_TAG, TAGS, TARGET
from minimind.stages.base import Forward, Stage
from minimind.tokenizer import Tokenizer

TAG_WEIGHT = 10.0


class Reason(Stage):
    """Cross-entropy over answer tokens, tags weighted, divided by the unweighted count."""

    config: ReasonConfig

    def weigh(self, words: Tokenizer) -> Weigh:
        """Whole tags inside answers; ``--tag_match pieces``: any token of a tag, in the prompt too, as the original."""
        pieces = np.array(sorted({token for tag in TAGS for token in words.encode(tag)}))

        def whole(ids: np.ndarray, flags: np.ndarray) -> np.ndarray:
            return (flags & TARGET) * np.where(flags & IN_TAG, TAG_WEIGHT, 1.0)

        def any_piece(ids: np.ndarray, flags: np.ndarray) -> np.ndarray:
            return np.where(np.isin(ids, pieces), TAG_WEIGHT, flags & TARGET)

        return any_piece if self.config.tag_match == "pieces" else whole

    def loss(self, forward: Forward, batch: Batch) -> tuple[Tensor, int, Mapping[str, Tensor]]:
        """Weighted cross-entropy summed over the batch's N positions; counted are its answer tokens."""
        head = functools.partial(linear_cross_entropy_sum, targets=batch.targets, weights=batch.weights)
        return forward(batch.ids, lengths=batch.lengths, select=batch.select, head=head), batch.count, {}
