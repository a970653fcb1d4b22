"""Direct preference optimisation against a frozen copy of the starting weights."""

from __future__ import annotations

import copy
import functools
from collections.abc import Mapping

import torch
from torch import Tensor

from minimind.batches import Batch
from minimind.config import DpoConfig
from minimind.losses import dpo, linear_log_probs, sum_by_document
from minimind.model import MiniMind
from minimind.stages.base import Forward, Stage


class Dpo(Stage):
    """-log sigmoid(beta * margin) over pairs; a batch's documents are its chosen answers, then its rejected ones."""

    kind = "pair"
    told = ("margin", "accuracy")
    config: DpoConfig

    def prepare(self, model: MiniMind) -> None:
        """Keep the starting weights as the reference."""
        self.reference = copy.deepcopy(model).requires_grad_(False).eval()

    @property
    def needs_start_on_resume(self) -> bool:
        """The reference is not in a checkpoint."""
        return True

    def to(self, device: torch.device) -> None:
        """Move the reference."""
        self.reference.to(device)

    def auxiliary(self, model: MiniMind) -> Tensor | None:
        """minimind3 adds the policy's, minimind2 none."""
        return model.auxiliary() if self.config.arch == "minimind3" else None

    def _log_probs(self, forward: Forward, batch: Batch) -> Tensor:
        head = functools.partial(linear_log_probs, targets=batch.targets)
        each = forward(batch.ids, lengths=batch.lengths, select=batch.select, head=head)  # (N,)
        summed = sum_by_document(each, batch.document, batch.documents)
        if self.config.length_normalised:
            ones = torch.ones_like(batch.targets, dtype=summed.dtype)
            summed = summed / sum_by_document(ones, batch.document, batch.documents)
        return summed.view(2, -1)  # chosen and rejected, (2, P)

    def loss(self, forward: Forward, batch: Batch) -> tuple[Tensor, int, Mapping[str, Tensor]]:
        """Loss summed over the batch's P pairs, with the sums of margins and of pairs ranked rightly."""
        with torch.no_grad():
            reference = self._log_probs(self.reference, batch)
        loss_sum, margin = dpo(self._log_probs(forward, batch), reference, beta=self.config.beta)
        told = {"margin": margin.detach().sum(), "accuracy": (margin.detach() > 0).sum()}
        return loss_sum, len(margin), told
