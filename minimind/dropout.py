"""Dropout without a random state: whether an activation is kept is a pure function of who it is.

A mask is a hash of (seed, epoch, document, position, layer, place, column). Which rank computes a sample, in which
pass, beside which others, packed or padded, and whether the run was resumed in between, cannot change it.
"""

from __future__ import annotations

import dataclasses
import enum
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

MASK = (1 << 32) - 1


class Place(enum.IntEnum):
    """Where MiniMind drops, each with masks of its own."""

    EMBEDDING = 0
    ATTENTION = 1
    RESIDUAL = 2
    FEED_FORWARD = 3


def mix(x: Tensor) -> Tensor:
    """Scramble 32-bit integers held in int64 (the finaliser "lowbias32" of C. Wellons' hash prospector)."""
    x = ((x ^ (x >> 16)) * 0x7FEB352D) & MASK
    x = ((x ^ (x >> 15)) * 0x846CA68B) & MASK
    return x ^ (x >> 16)


@dataclass(frozen=True, kw_only=True)
class Dropout:
    """The masks of one pass. ``keys`` names each of its B*T positions, (B, T) int64 below 2**32."""

    share: float
    keys: Tensor
    layer: Tensor | int = 0

    def by_layer(self, count: int) -> list[Dropout]:
        """The same for each layer. Its number is a tensor, so that one compiled block serves all of them."""
        return [dataclasses.replace(self, layer=n) for n in torch.arange(count, device=self.keys.device).unbind()]

    def __call__(self, x: Tensor, place: Place, *, keys: Tensor | None = None) -> Tensor:
        """Drop from (..., C), one key a row; the rest is scaled up by 1 / (1 - share)."""
        rows = self.keys.reshape(-1) if keys is None else keys
        columns = torch.arange(x.shape[-1], device=x.device)
        return self._apply(x, self._salted(rows, place).view(*x.shape[:-1], 1), columns)

    def experts(self, x: Tensor, *, token: Tensor, expert: Tensor) -> Tensor:
        """The same for (N, C) outputs of experts, each of its own token (N,) and expert (N,)."""
        return self(x, Place.FEED_FORWARD, keys=mix(self.keys.reshape(-1)[token] ^ (expert + 1)))

    def attend(self, q: Tensor, k: Tensor, v: Tensor, lengths: Sequence[int] | None) -> Tensor:
        """Causal attention over (B, H, T, D) with dropped probabilities.

        With ``lengths`` the single row is documents one after the other, and each attends to itself alone.
        """
        cuts = list(lengths) if lengths is not None else [q.shape[2]]
        pieces = zip(
            *(torch.split(x, cuts, dim=2) for x in (q, k, v)), torch.split(self.keys, cuts, dim=1), strict=True
        )
        return torch.cat([self._attend(*piece) for piece in pieces], dim=2)

    def _attend(self, q: Tensor, k: Tensor, v: Tensor, keys: Tensor) -> Tensor:
        scores = q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1])  # (B, H, T, T)
        future = torch.ones(scores.shape[-2:], dtype=torch.bool, device=q.device).triu(1)
        probabilities = scores.float().masked_fill(future, -math.inf).softmax(-1).to(q.dtype)
        heads = torch.arange(q.shape[1], device=q.device)[:, None]
        rows = mix(self._salted(keys[:, None, :], Place.ATTENTION) ^ (heads + 1))  # (B, H, T)
        return self._apply(probabilities, rows[..., None], torch.arange(k.shape[2], device=q.device)) @ v

    def _salted(self, keys: Tensor, place: Place) -> Tensor:
        return mix(keys ^ (4 * self.layer + (1 + int(place))))

    def _apply(self, x: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
        kept = mix(rows ^ mix(columns + 1)) >= round(self.share * (1 << 32))
        return x * kept * (1.0 / (1.0 - self.share))


def keys(seed: int, epoch: int, documents: np.ndarray, lengths: Sequence[int], width: int | None = None) -> Tensor:
    """A name for every position of a pass.

    Args:
        seed: the run's.
        epoch: from 1.
        documents: number of each document in the data.
        lengths: positions of each document.
        width: of a padded row; None when the documents are packed into one.

    Returns:
        (1, sum of lengths), or (documents, width).
    """
    start = mix(torch.tensor([seed & MASK])) ^ mix(torch.tensor([(seed >> 32) + epoch + 1]))
    numbers = torch.from_numpy(np.asarray(documents, np.int64))
    names = mix(mix(start ^ (numbers & MASK)) ^ mix((numbers >> 32) + 1))  # (documents,)
    if width is not None:
        return mix(names[:, None] ^ mix(torch.arange(width) + 1))
    positions = torch.cat([torch.arange(n) for n in lengths])
    return mix(names.repeat_interleave(torch.tensor(lengths)) ^ mix(positions + 1))[None]
