"""The preallocated cache of keys and values, and how one more token is computed for every row that is in it.

Shapes: B rows, T tokens, H heads, K key/value heads, D head width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from minimind.model import MiniMind, rotary_tables

COLUMNS = 256
"""The cache grows by whole multiples of this many positions, so that shapes (and captured graphs) stay few."""


class Cache:
    """Keys and values of up to ``rows`` texts of up to ``columns`` tokens: two (rows, K, columns, D) a layer.

    Row r's token at position p lies in column p, so texts of any lengths lie side by side without padding to one
    another; what is right of a row's last token is never looked at.
    """

    def __init__(self, model: MiniMind) -> None:
        self.config = model.config
        weight = model.model.embed_tokens.weight
        self.dtype, self.device = weight.dtype, weight.device
        self.rows = self.columns = 0
        self.layers: list[tuple[Tensor, Tensor]] = []

    def reserve(self, rows: int, columns: int) -> bool:
        """Make room, keeping what is there; True when buffers were replaced."""
        columns = min(-(-columns // COLUMNS) * COLUMNS, self.config.max_position_embeddings)
        if rows <= self.rows and columns <= self.columns:
            return False
        if columns > self.columns:  # at least twice as many, so that a long text is not copied every few tokens
            columns = min(max(columns, 2 * self.columns), self.config.max_position_embeddings)
        rows, columns = max(rows, self.rows), max(columns, self.columns)
        shape = (rows, self.config.num_key_value_heads, columns, self.config.head_dim)
        # inside generate() these become inference tensors, which is what lets every pass write into them
        fresh = [
            tuple(torch.zeros(shape, dtype=self.dtype, device=self.device) for _ in range(2))
            for _ in range(self.config.num_hidden_layers)
        ]
        for old, new in zip(self.layers, fresh, strict=False):
            for before, after in zip(old, new, strict=True):
                after[: self.rows, :, : self.columns] = before
        self.layers = [(keys, values) for keys, values in fresh]
        self.rows, self.columns = rows, columns
        positions = torch.arange(columns, device=self.device)
        self.cos, self.sin = (table.to(self.dtype) for table in rotary_tables(self.config, positions))  # (columns, D)
        return True

    def move(self, source: int, target: int) -> None:
        """Copy one row over another."""
        for keys, values in self.layers:
            keys[target], values[target] = keys[source], values[source]


class Piece:
    """T further tokens of one row, from position ``start`` on (B = 1)."""

    def __init__(self, cache: Cache, row: int, start: int, tokens: int) -> None:
        self.cache, self.row, self.span = cache, slice(row, row + 1), slice(start, start + tokens)
        self.tables = cache.cos[self.span], cache.sin[self.span]  # each (T, D)

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """(1, H, T, D): every token sees those before it and itself."""
        keys, values = self.cache.layers[layer]
        keys[self.row, :, self.span], values[self.row, :, self.span] = k, v
        groups, end, t = q.shape[1] // k.shape[1], self.span.stop, q.shape[2]
        if self.span.start:
            k, v = (kept[self.row, :, :end] for kept in (keys, values))
        k, v = (z.repeat_interleave(groups, dim=1) for z in (k, v))  # (1, H, end, D)
        if end == t:
            return F.scaled_dot_product_attention(q, k, v, is_causal=True)
        seen = torch.ones(t, end, dtype=torch.bool, device=q.device).tril(end - t)
        return F.scaled_dot_product_attention(q, k, v, attn_mask=seen)


class Pack:
    """Whole prompts of rows ``first``, ``first`` + 1 …, one after the other in one pass (B = 1); each sees itself."""

    def __init__(self, cache: Cache, first: int, lengths: Sequence[int]) -> None:
        self.cache, self.first, self.lengths = cache, first, list(lengths)
        self.tables = tuple(torch.cat([table[:n] for n in lengths]) for table in (cache.cos, cache.sin))  # each (T, D)

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """(1, H, T, D)."""
        parts = zip(*(torch.split(x, self.lengths, dim=2) for x in (q, k, v)), strict=True)
        found = [
            Piece(self.cache, row, 0, part[0].shape[2]).attend(layer, *part)
            for row, part in enumerate(parts, start=self.first)
        ]
        return torch.cat(found, dim=2)


class Step:
    """One further token in each of the first B rows, at each row's own position (T = 1).

    Heads that share keys are folded into the query's token axis, so nothing is repeated.
    """

    def __init__(self, cache: Cache, positions: Sequence[int]) -> None:
        self.cache, self.rows, self.columns = cache, len(positions), max(positions) + 1
        self.even = positions[0] if len(set(positions)) == 1 else None
        self.mask: Tensor | None = None
        if self.even is None:
            at = torch.tensor(positions, device=cache.device)
            self.place = torch.arange(len(positions), device=cache.device), at
            self.mask = (torch.arange(self.columns, device=cache.device) <= at[:, None])[:, None, None]
            self.tables = cache.cos[at][:, None, None], cache.sin[at][:, None, None]  # each (B, 1, 1, D)
        else:
            self.tables = cache.cos[self.even], cache.sin[self.even]  # each (D,)

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """(B, H, 1, D)."""
        keys, values = self.cache.layers[layer]
        if self.even is not None:
            keys[: self.rows, :, self.even], values[: self.rows, :, self.even] = k[:, :, 0], v[:, :, 0]
        else:
            row, at = self.place
            keys[row, :, at], values[row, :, at] = k[:, :, 0], v[:, :, 0]
        k, v = (kept[: self.rows, :, : self.columns] for kept in (keys, values))  # (B, K, columns, D)
        folded = q.view(q.shape[0], k.shape[1], -1, q.shape[3])  # (B, K, H/K, D)
        return F.scaled_dot_product_attention(folded, k, v, attn_mask=self.mask).reshape(q.shape)


class StaticStep:
    """The same with shapes that do not depend on the positions, for compiled steps and captured graphs.

    ``positions`` (B,) is a tensor; all columns are looked at, behind a mask.
    """

    def __init__(self, cache: Cache, positions: Tensor) -> None:
        self.cache, self.positions = cache, positions
        self.rows = torch.arange(len(positions), device=positions.device)
        self.mask = (torch.arange(cache.columns, device=positions.device) <= positions[:, None])[:, None, None]
        self.tables = cache.cos[positions][:, None, None], cache.sin[positions][:, None, None]  # each (B, 1, 1, D)

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """(B, H, 1, D)."""
        keys, values = self.cache.layers[layer]
        keys[self.rows, :, self.positions], values[self.rows, :, self.positions] = k[:, :, 0], v[:, :, 0]
        k, v = (kept[: len(self.rows)] for kept in (keys, values))  # (B, K, columns, D)
        folded = q.view(q.shape[0], k.shape[1], -1, q.shape[3])  # (B, K, H/K, D)
        return F.scaled_dot_product_attention(folded, k, v, attn_mask=self.mask).reshape(q.shape)


class Stepper:
    """One more token for every row: as it comes on a CPU, by a captured CUDA graph where that gives the same logits."""

    def __init__(self, model: MiniMind, cache: Cache) -> None:
        self.model, self.cache = model, cache
        # the experts' group sizes travel to the CPU in every layer, which no graph can hold
        self.static = cache.device.type == "cuda" and not model.config.num_experts
        self.graphs: dict[tuple[int, int], Captured] = {}

    def __call__(self, tokens: Sequence[int], positions: Sequence[int]) -> Tensor:
        """Logits (B, V) after one token (B) at each row's position (B); fp32 on the CPU."""
        grown = self.cache.reserve(len(tokens), min(max(positions) + 1, self.model.config.max_position_embeddings))
        if grown:
            self.graphs.clear()  # they hold the buffers that were replaced
        ids = torch.tensor(tokens, device=self.cache.device)[:, None]  # (B, 1)
        logits = self._replayed(ids, positions) if self.static else None
        if logits is None:
            logits = self.model(ids, cache=Step(self.cache, positions))[:, 0]
        return logits.float().cpu()

    def _replayed(self, ids: Tensor, positions: Sequence[int]) -> Tensor | None:
        rows = 1 << (len(ids) - 1).bit_length()  # few shapes: 1, 2, 4, 8 …
        if self.cache.reserve(rows, 1):
            self.graphs.clear()
        key = rows, self.cache.columns
        at = torch.tensor(positions, device=ids.device)
        try:
            if key not in self.graphs:
                self.graphs[key] = Captured(self.model, self.cache, rows)
                expected = self.model(ids, cache=Step(self.cache, positions))[:, 0]
                got = self.graphs[key](ids, at)
                if not torch.allclose(got, expected, rtol=1e-2, atol=1e-2):
                    raise RuntimeError("the graph gives other logits")
                return expected
            return self.graphs[key](ids, at)
        except RuntimeError:  # a driver or a layer that cannot be captured
            self.static = False
            self.graphs.clear()
            return None


class Captured:
    """A CUDA graph of one step for a fixed number of rows; rows that nobody uses compute on their own column 0."""

    def __init__(self, model: MiniMind, cache: Cache, rows: int) -> None:
        self.ids = torch.zeros(rows, 1, dtype=torch.long, device=cache.device)
        self.positions = torch.zeros(rows, dtype=torch.long, device=cache.device)
        keep = [(keys[:rows, :, 0].clone(), values[:rows, :, 0].clone()) for keys, values in cache.layers]
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):  # first calls allocate and choose kernels, which a capture must not see
            for _ in range(3):
                model(self.ids, cache=StaticStep(cache, self.positions))
        torch.cuda.current_stream().wait_stream(side)
        self.graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self.graph):
            self.logits = model(self.ids, cache=StaticStep(cache, self.positions))[:, 0]  # (rows, V)
        for (keys, values), (k, v) in zip(cache.layers, keep, strict=True):  # warming up wrote into column 0
            keys[:rows, :, 0], values[:rows, :, 0] = k, v

    def __call__(self, ids: Tensor, positions: Tensor) -> Tensor:
        """(B, V) for the first B rows; valid until the next call."""
        self.positions.zero_()
        self.ids[: len(ids)], self.positions[: len(ids)] = ids, positions
        self.graph.replay()
        return self.logits[: len(ids)]
