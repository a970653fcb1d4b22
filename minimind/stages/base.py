"""What a stage is: how its lines are read, what is trained, the loss of a batch, the weights it leaves."""

from __future__ import annotations

import abc
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, ClassVar

from torch import Tensor, nn

from minimind.batches import Batch, Reader, Weigh
from minimind.catalog import StageInfo
from minimind.dist import World
from minimind.model import MiniMind
from minimind.shards import Kind, kind_for
from minimind.tokenizer import Tokenizer

Forward = Callable[..., Tensor]
"""The (possibly wrapped) model's call: ``forward(ids, lengths=…, select=…)`` -> (N, V)."""


class Stage(abc.ABC):
    """One stage. ``loss`` returns a sum and its count, and sums of whatever else metrics.jsonl shows per count."""

    kind: Kind
    told: ClassVar[tuple[str, ...]] = ()

    def __init__(self, config: Any, info: StageInfo) -> None:
        self.config, self.info = config, info
        self.kind = kind_for(info, config.arch)

    def prepare(self, model: MiniMind, say: Callable[[str], None]) -> None:
        """Turn the loaded weights into what is trained: freeze, inject adapters, keep a reference."""

    def weigh(self, words: Tokenizer) -> Weigh | None:
        """How much each position counts, where that is not one for every target."""
        return None

    @property
    def inputs(self) -> tuple[Path, ...]:
        """Further weight files this stage reads."""
        return ()

    @property
    def needs_start_on_resume(self) -> bool:
        """Whether a checkpoint alone cannot rebuild the stage (a frozen base or a reference is not in it)."""
        return False

    def begin(
        self, model: MiniMind, reader: Reader, ranks: World, facts: Mapping[str, Any], say: Callable[[str], None]
    ) -> None:
        """What all ranks do together before the first step; ``facts`` name shape, cut and what computes."""

    @abc.abstractmethod
    def loss(self, forward: Forward, batch: Batch) -> tuple[Tensor, int, Mapping[str, Tensor]]:
        """Sum, count and named sums of one pass."""

    def auxiliary(self, model: MiniMind) -> Tensor | None:
        """What a mixture of experts adds to the loss of the last pass; None adds nothing."""
        return model.auxiliary()

    def weights(self, model: MiniMind) -> dict[str, Tensor]:
        """The state dict to export."""
        return model.state_dict()

    def sidecar(self, model: MiniMind) -> dict[str, Any]:
        """What the description beside the weights says of this stage."""
        return {}

    def to(self, device: Any) -> None:
        """Move what the stage keeps beside the model."""


def trainable(model: nn.Module) -> dict[str, nn.Parameter]:
    """Parameters with gradients, by name; a tied one stands once."""
    return {name: p for name, p in model.named_parameters() if p.requires_grad}
