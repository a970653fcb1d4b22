"""The optimiser."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import nn

from minimind.schedule import learning_rate

__all__ = ["adamw", "learning_rate"]


def adamw(parameters: Iterable[nn.Parameter], *, learning_rate: float) -> torch.optim.AdamW:
    """PyTorch's AdamW at its defaults (betas 0.9/0.999, eps 1e-8, weight decay 0.01), fused."""
    return torch.optim.AdamW(parameters, lr=learning_rate, fused=True)
