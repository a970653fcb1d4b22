"""Distillation: a student learns the teacher's distribution over answer tokens, and the answers themselves."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from minimind import checkpoint
from minimind.batches import Batch, Reader
from minimind.catalog import weights_file
from minimind.config import DistillationConfig
from minimind.dist import World
from minimind.losses import cross_entropy_sum, distillation_sum
from minimind.model import MiniMind
from minimind.rundir import Reason, RunError
from minimind.stages.base import Forward, Stage

HEADS = ("num_attention_heads", "num_key_value_heads", "head_dim")


class Distillation(Stage):
    """alpha * CE + (1 - alpha) * T^2 * KL(teacher || student), both over answer tokens."""

    config: DistillationConfig
    told = ("ce",)

    def prepare(self, model: MiniMind, say: Callable[[str], None]) -> None:
        """Load the teacher, of any size, with the student's vocabulary."""
        (path,) = self.inputs
        self.teacher = checkpoint.load_model(path).requires_grad_(False)
        if self.teacher.config.vocab_size < model.config.vocab_size:
            raise RunError(
                f"{path} cannot teach this student",
                why=f"it knows {self.teacher.config.vocab_size} tokens, the student {model.config.vocab_size}",
                remedy="give a --teacher_weight trained with the same tokenizer",
                reason=Reason.DATA_INVALID,
            )

    @property
    def inputs(self) -> tuple[Path, ...]:
        """The teacher's weights."""
        name = self.config.teacher_weight
        if "/" in name or name.endswith(".pth"):
            return (Path(name),)
        return (self.config.save_dir / weights_file(name, hidden_size=self.config.teacher_hidden_size),)

    @property
    def needs_start_on_resume(self) -> bool:
        """The teacher is not in a checkpoint."""
        return True

    def to(self, device: torch.device) -> None:
        """Move the teacher."""
        self.teacher.to(device)

    def begin(
        self, model: MiniMind, reader: Reader, ranks: World, facts: Mapping[str, Any], say: Callable[[str], None]
    ) -> None:
        """A teacher with heads like the student's attends as the student does; of another it was not tried."""
        if all(getattr(self.teacher.config, name) == getattr(model.config, name) for name in HEADS):
            self.teacher.way = model.way

    def loss(self, forward: Forward, batch: Batch) -> tuple[Tensor, int, Mapping[str, Tensor]]:
        """The weighted sum over the batch's N answer tokens, with the cross-entropy told apart."""
        with torch.no_grad():
            wanted = self.teacher(batch.ids, lengths=batch.lengths, select=batch.select)  # (N, V)
        logits = forward(batch.ids, lengths=batch.lengths, select=batch.select)  # (N, V)
        ce = cross_entropy_sum(logits, batch.targets)
        divergence = distillation_sum(logits, wanted, temperature=self.config.temperature)
        alpha = self.config.alpha
        return alpha * ce + (1 - alpha) * divergence, batch.count, {"ce": ce.detach()}
