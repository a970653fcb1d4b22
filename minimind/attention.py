"""How the documents of a packed row attend, each to itself alone: one way for each kind of machine.

Shapes: P documents of T tokens together, H heads, K key/value heads, D head width.
"""

from __future__ import annotations

import abc
import functools
import itertools
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

BLOCK = 128
"""Side of the squares of pairs that ``flex`` computes or skips as a whole."""
LEAST_ROOM, LEAST_LONGEST = 64, 128
"""The smallest sizes that a varlen kernel is told."""


class Row(abc.ABC):
    """Documents one after the other in a single row; made once a pass, used by every layer.

    Args:
        lengths: of the P documents.
        device: where the row is.
    """

    name: ClassVar[str]

    def __init__(self, lengths: Sequence[int], device: torch.device) -> None:
        self.lengths = tuple(lengths)
        each = torch.tensor(self.lengths).to(device, non_blocking=True)  # (P,)
        numbers = torch.arange(len(self.lengths), device=device)
        self.document = numbers.repeat_interleave(each, output_size=sum(self.lengths))  # (T,), ascending
        first = each.cumsum(0) - each  # (P,)
        self.position = torch.arange(len(self.document), device=device) - first[self.document]  # (T,)

    @abc.abstractmethod
    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Causal attention of queries (1, H, T, D) to keys and values (1, K, T, D) of their document: (1, H, T, D)."""


def repeated(x: Tensor, heads: int) -> Tensor:
    """Keys or values (B, K, T, D), each repeated for the H / K queries that share it: (B, H, T, D)."""
    return x.repeat_interleave(heads // x.shape[1], dim=1)


def lowered(x: Tensor) -> Tensor:
    """The same in the type of the autocast around it, which ``scaled_dot_product_attention`` sees to by itself."""
    kind = x.device.type
    return x.to(torch.get_autocast_dtype(kind)) if torch.is_autocast_enabled(kind) else x


class ByDocument(Row):
    """One call a document, no mask, nothing computed twice: the fastest on a CPU."""

    name = "document by document"

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Split, attend, join."""
        k, v = repeated(k, q.shape[1]), repeated(v, q.shape[1])
        parts = zip(*(torch.split(x, list(self.lengths), dim=2) for x in (q, k, v)), strict=True)
        return torch.cat([F.scaled_dot_product_attention(a, b, c, is_causal=True) for a, b, c in parts], dim=2)


class Padded(Row):
    """One call for a padded batch that the documents are copied into and back from: works on every GPU."""

    name = "padded"

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Documents become rows (P, H, longest, D) and come back."""
        k, v = repeated(k, q.shape[1]), repeated(v, q.shape[1])
        at = (self.document, self.position)

        def pad(x: Tensor) -> Tensor:
            padded = x.new_zeros(len(self.lengths), max(self.lengths), x.shape[1], x.shape[3])
            padded[at] = x[0].transpose(0, 1)
            return padded.transpose(1, 2)  # (P, H, longest, D)

        out = F.scaled_dot_product_attention(pad(q), pad(k), pad(v), is_causal=True)
        return out.transpose(1, 2)[at].transpose(0, 1).unsqueeze(0)


class Dense(Row):
    """One call with a mask of all pairs (T, T): the plainest, which the others are held against."""

    name = "dense"

    def __init__(self, lengths: Sequence[int], device: torch.device) -> None:
        super().__init__(lengths, device)
        self.mask = _same_and_not_later(self.document, torch.arange(len(self.document), device=device))  # (T, T)

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """All pairs, those of other documents and of later tokens masked."""
        k, v = repeated(k, q.shape[1]), repeated(v, q.shape[1])
        return F.scaled_dot_product_attention(q, k, v, attn_mask=self.mask)


class Varlen(Row):
    """Flash attention that is told where documents end; a CUDA device, float16 or bfloat16.

    What it is told has one of few shapes and values (powers of two), so that a compiled block is not compiled for each
    batch anew: documents beyond the last are empty, and the longest may be shorter than said.
    """

    name = "varlen"

    def __init__(self, lengths: Sequence[int], device: torch.device) -> None:
        super().__init__(lengths, device)
        from torch.nn.attention.varlen import varlen_attn

        self.kernel = varlen_attn
        ends = [0, *itertools.accumulate(self.lengths)]
        ends += ends[-1:] * (_power_of_two(len(self.lengths), LEAST_ROOM) + 1 - len(ends))
        self.bounds = torch.tensor(ends, dtype=torch.int32).to(device, non_blocking=True)  # (room + 1,)
        self.longest = _power_of_two(max(self.lengths), LEAST_LONGEST)

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """The kernel takes (T, H, D) and (T, K, D)."""
        shared = q.shape[1] != k.shape[1]
        q, k, v = (lowered(x)[0].transpose(0, 1).contiguous() for x in (q, k, v))
        bounds, longest = self.bounds, self.longest
        out: Tensor = self.kernel(
            q, k, v, bounds, bounds, longest, longest, window_size=(-1, 0), enable_gqa=shared
        )  # a window of nothing after a token and everything before it: causal
        return out.transpose(0, 1).unsqueeze(0)


class Flex(Row):
    """A kernel that torch compiles for this very mask; blocks of pairs without a document in common are skipped."""

    name = "flex"

    def __init__(self, lengths: Sequence[int], device: torch.device) -> None:
        super().__init__(lengths, device)
        self.kernel = flex_kernel(device.type == "cuda")
        self.blocks = block_mask(self.document)

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Keys and values are shared by the kernel."""
        shared = q.shape[1] != k.shape[1]
        out: Tensor = self.kernel(lowered(q), lowered(k), lowered(v), block_mask=self.blocks, enable_gqa=shared)
        return out


WAYS: dict[str, type[Row]] = {way.name: way for way in (ByDocument, Padded, Dense, Varlen, Flex)}


def usual(device: torch.device) -> type[Row]:
    """The way that needs no trial."""
    return ByDocument if device.type == "cpu" else Padded


@functools.cache
def flex_kernel(compiled: bool) -> Callable[..., Tensor]:
    """``flex_attention``; compiled once for all numbers of tokens."""
    from torch.nn.attention.flex_attention import flex_attention

    kernel: Callable[..., Tensor] = torch.compile(flex_attention, dynamic=True) if compiled else flex_attention
    return kernel


def block_mask(document: Tensor) -> Any:
    """What ``create_block_mask`` makes of documents (T,) in ascending order, without ever making all pairs (T, T)."""
    from torch.nn.attention.flex_attention import BlockMask

    tokens = len(document)
    begins = torch.arange(0, tokens, BLOCK, device=document.device)  # (N,)
    first, last = document[begins], document[(begins + BLOCK - 1).clamp(max=tokens - 1)]  # (N,) of each block
    needed = (begins[:, None] >= begins) & (first[:, None] <= last)  # (N, N), queries by keys
    whole = (begins[:, None] > begins) & (last[:, None] == first) & (begins[:, None] + BLOCK <= tokens)

    def ordered(chosen: Tensor) -> tuple[Tensor, Tensor]:
        """How many blocks of keys each block of queries has, and their numbers, those first."""
        numbers = chosen.int().argsort(dim=-1, descending=True, stable=True)
        return chosen.sum(-1, dtype=torch.int32)[None, None], numbers.int()[None, None]  # (1, 1, N), (1, 1, N, N)

    def same_and_not_later(_b: Tensor, _h: Tensor, q: Tensor, k: Tensor) -> Tensor:
        return (document[q] == document[k]) & (q >= k)

    return BlockMask.from_kv_blocks(
        *ordered(needed & ~whole),
        *ordered(whole),
        BLOCK_SIZE=BLOCK,
        mask_mod=same_and_not_later,
        seq_lengths=(tokens, tokens),
    )


def _same_and_not_later(document: Tensor, place: Tensor) -> Tensor:
    return (document[:, None] == document) & (place[:, None] >= place)


def _power_of_two(least: int, floor: int) -> int:
    return max(floor, 1 << (least - 1).bit_length())
