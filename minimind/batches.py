"""How the samples of a micro-batch become tensors, packed or padded."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from minimind.order import Order, Samples, Step
from minimind.shards import TARGET, Shards

__all__ = ["Batch", "Order", "Reader", "Step", "Weigh"]

Weigh = Callable[[np.ndarray, np.ndarray], np.ndarray]
"""(ids, flags) of places that could be predicted -> their weights, each by itself; those above zero are computed."""


TENSORS = ("ids", "select", "targets", "document", "weights")
"""Fields of a batch that move to the device."""


@dataclass(frozen=True, kw_only=True)
class Batch:
    """Tensors of one pass. N positions are targets; ``select`` says where they stand among the B*T positions."""

    ids: Tensor  # (B, T)
    lengths: tuple[int, ...] | None  # packed: documents of the single row; None: padded rows
    select: Tensor  # (N,)
    targets: Tensor  # (N,)
    document: Tensor  # (N,) which document each target belongs to
    weights: Tensor  # (N,) one each, unless the stage weighs
    numbers: np.ndarray  # (documents,) which documents of the data these are
    widths: tuple[int, ...]  # positions of each document in its row
    documents: int
    count: int  # targets, each once
    tokens: int  # real ones, each document's first included

    def to(self, device: torch.device) -> Batch:
        """The same on another device."""
        if device.type == "cpu":
            return self
        pinned = self.pinned()
        return dataclasses.replace(
            pinned, **{name: getattr(pinned, name).to(device, non_blocking=True) for name in TENSORS}
        )

    def pinned(self) -> Batch:
        """The same in memory that a GPU reads by itself."""
        try:
            return dataclasses.replace(self, **{name: getattr(self, name).pin_memory() for name in TENSORS})
        except RuntimeError:  # a host that lets no more memory be pinned: the copy waits then, and is the same
            return self


class Reader(Samples):
    """Turns sample numbers into batches."""

    def __init__(
        self,
        shards: Shards,
        *,
        max_seq_len: int,
        pack: bool,
        max_tokens_per_batch: int | None,
        weigh: Weigh | None = None,
    ) -> None:
        super().__init__(shards, max_seq_len=max_seq_len)
        self.pack, self.max_tokens_per_batch = pack, max_tokens_per_batch
        self.joins = False
        """Whether the micro-batches of a rank's step are joined before they are split into passes."""
        self.by_tokens = pack
        """Whether ranks share a step by tokens. Else by samples: padded rows are all of one length, and a mixture's
        balancing loss is a mean over each micro-batch."""
        self.ids, self.flags = np.asarray(shards.ids), np.asarray(shards.targets)  # a memmap's own indexing is slow
        self.weigh: Weigh = weigh or (lambda ids, flags: flags & TARGET)

    def batches(self, samples: np.ndarray) -> Iterator[Batch]:
        """One micro-batch as passes of at most ``max_tokens_per_batch`` tokens; none when nothing in it is a target."""
        return (self.build(group) for group in self.groups(samples, self.max_tokens_per_batch))

    def groups(self, samples: np.ndarray, most: int | None) -> Iterator[np.ndarray]:
        """Which samples of the file make up each pass of at most ``most`` tokens; a longer sample has its own."""
        chosen = self.usable[samples]
        if self.per_sample == 1:
            chosen = chosen[self.target_counts[chosen] > 0]
        if not most or len(chosen) * self.per_sample * self.max_seq_len <= most:  # none is longer than that
            if len(chosen):
                yield chosen
            return
        ends = np.cumsum(self.lengths[self.documents(chosen)].reshape(self.per_sample, -1).sum(0))  # (samples,)
        first = 0
        while first < len(chosen):
            before = ends[first - 1] if first else 0
            last = max(first + 1, int(np.searchsorted(ends, before + most, side="right")))
            yield chosen[first:last]
            first = last

    def lines(self, samples: np.ndarray) -> list[int]:
        """Where these samples of a step stand in the data file, from 1, ascending."""
        return sorted(int(line) for line in self.shards.lines[self.usable[samples]])

    def lines_of(self, batch: Batch) -> list[int]:
        """Where the samples of one pass stand in the data file."""
        return sorted({int(line) for line in self.shards.lines[batch.numbers // self.per_sample]})

    def silent(self) -> Batch:
        """A pass for a rank that has nothing to compute in a step: some sample, of which the caller takes none."""
        with_targets = (self.target_counts.reshape(-1, self.per_sample) > 0).all(1)
        return self.build(np.flatnonzero(with_targets)[:1])

    def build(self, samples: np.ndarray) -> Batch:
        """One pass over these samples of the file, in their order."""
        numbers = self.documents(samples)
        lengths = self.lengths[numbers].astype(np.int64)
        ends = np.cumsum(lengths)
        of = np.repeat(np.arange(len(numbers)), lengths)  # (tokens,) which document
        within = np.arange(ends[-1]) - (ends - lengths)[of]  # (tokens,) place in its document
        at = self.shards.offsets[numbers][of] + within
        ids = self.ids[at].astype(np.int64)
        if self.shards.kind == "wrapped":  # a text that is cut keeps its end token
            ids[ends - 1] = self.ids[self.shards.offsets[numbers + 1] - 1]
        known = np.flatnonzero(within < lengths[of] - 1)  # (places,) tokens that have a next one, which is predicted
        following, flags = ids[known + 1], self.flags[at[known + 1]]
        weights = self.weigh(following, flags)
        chosen = np.flatnonzero(weights)  # (N,)
        document = of[known]
        if self.pack:
            row, select = ids[known][None], chosen
        else:
            width = self.max_seq_len - 1
            row = np.zeros((len(numbers), width), np.int64)  # the padding's id is never read: causal, and no target
            row[document, within[known]] = ids[known]
            select = (document * width + within[known])[chosen]
        widths = tuple((lengths - 1).tolist())
        return Batch(
            ids=torch.from_numpy(row),
            lengths=widths if self.pack else None,
            select=torch.from_numpy(select),
            targets=torch.from_numpy(following[chosen]),
            document=torch.from_numpy(document[chosen]),
            weights=torch.from_numpy(weights[chosen].astype(np.float32)),
            count=int((flags & TARGET).sum()),
            numbers=numbers,
            widths=widths,
            documents=len(numbers),
            tokens=int(ends[-1]),
        )
