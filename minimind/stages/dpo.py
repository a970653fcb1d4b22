"""Direct preference optimisation against the frozen starting weights, whose answers are scored once."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from minimind import reference
from minimind.batches import Batch, Reader
from minimind.config import DpoConfig
from minimind.dist import World
from minimind.losses import dpo, linear_log_probs, sum_by_document
from minimind.model import MiniMind
from minimind.stages.base import Forward, Stage


class Dpo(Stage):
    """-log sigmoid(beta * margin) over pairs; a batch's documents are its chosen answers, then its rejected ones."""

    told = ("margin", "accuracy")
    config: DpoConfig

    def prepare(self, model: MiniMind, say: Callable[[str], None]) -> None:
        """Keep the starting weights until the reference is known."""
        self.start = copy.deepcopy(model).requires_grad_(False).eval()

    @property
    def needs_start_on_resume(self) -> bool:
        """The reference is not in a checkpoint."""
        return True

    def begin(
        self, model: MiniMind, reader: Reader, ranks: World, facts: Mapping[str, Any], say: Callable[[str], None]
    ) -> None:
        """Know every answer's log-probability under the starting weights; these are dropped then."""
        forward = self.start.to(ranks.device)
        forward.way = model.way
        del self.start
        if ranks.leader:  # who alone reads and writes what is kept
            way, most = forward.way.name if forward.way else None, reader.max_tokens_per_batch
            facts = {**facts, "weights": reference.fingerprint(forward), "attention": way, "most": most}
        sums = reference.load_or_compute(lambda b: self._sums(forward, b), reader, ranks, facts=facts, say=say)
        self.reference = torch.from_numpy(sums).to(ranks.device)  # (documents of the data,)

    def auxiliary(self, model: MiniMind) -> Tensor | None:
        """minimind3 adds the policy's, minimind2 none."""
        return model.auxiliary() if self.config.arch == "minimind3" else None

    def _sums(self, forward: Forward, batch: Batch) -> Tensor:
        head = functools.partial(linear_log_probs, targets=batch.targets)
        each = forward(batch.ids, lengths=batch.lengths, select=batch.select, head=head)  # (N,)
        return sum_by_document(each, batch.document, batch.documents)  # (2P,)

    def loss(self, forward: Forward, batch: Batch) -> tuple[Tensor, int, Mapping[str, Tensor]]:
        """Loss summed over the batch's P pairs, with the sums of margins and of pairs ranked rightly."""
        both = torch.stack((self._sums(forward, batch), self.reference[torch.from_numpy(batch.numbers)]))  # (2, 2P)
        if self.config.length_normalised:
            both = both / torch.bincount(batch.document, minlength=batch.documents)
        policy, known = both.view(2, 2, -1)  # each (2, P): chosen and rejected
        loss_sum, margin = dpo(policy, known, beta=self.config.beta)
        told = {"margin": margin.detach().sum(), "accuracy": (margin.detach() > 0).sum()}
        return loss_sum, len(margin), told
