"""Which samples form which batch: a pure function of (seed, epoch, step), and how they become tensors.

The world size is not among the arguments: ranks take the step's micro-batches round robin, so it decides who computes a
sample and never whether it is in the step.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from minimind.shards import DOCS_PER_SAMPLE, TARGET, Shards

Weigh = Callable[[np.ndarray, np.ndarray], np.ndarray]
"""(ids, flags) of positions that could be predicted -> their weights; those above zero are computed."""


@dataclass(frozen=True, kw_only=True)
class Step:
    """One optimizer step: its micro-batches over all ranks, as arrays of sample numbers."""

    number: int
    epoch: int
    micro_batches: tuple[np.ndarray, ...]
    last_micro_batch: int
    """Number of its last micro-batch, from 0 over all epochs: where the learning rate is read."""


@dataclass(frozen=True, kw_only=True)
class Order:
    """The order of samples: each epoch is one permutation, cut into micro-batches, grouped into steps.

    The last micro-batch of an epoch and the last group may be smaller; they are stepped with what they hold.
    """

    samples: int
    batch_size: int
    micro_batches_per_step: int
    epochs: int
    seed: int

    @property
    def micro_batches_per_epoch(self) -> int:
        """Micro-batches over all ranks in one pass."""
        return -(-self.samples // self.batch_size)

    @property
    def steps_per_epoch(self) -> int:
        """Optimizer steps in one pass."""
        return -(-self.micro_batches_per_epoch // self.micro_batches_per_step)

    @property
    def total_steps(self) -> int:
        """Optimizer steps of the run."""
        return self.epochs * self.steps_per_epoch

    @property
    def total_micro_batches(self) -> int:
        """Micro-batches of the run."""
        return self.epochs * self.micro_batches_per_epoch

    def step(self, number: int) -> Step:
        """Step ``number``, from 1."""
        epoch, index = divmod(number - 1, self.steps_per_epoch)
        permutation = _permutation(self.samples, self.seed, epoch)
        first = index * self.micro_batches_per_step
        last = min(first + self.micro_batches_per_step, self.micro_batches_per_epoch)
        return Step(
            number=number,
            epoch=epoch + 1,
            micro_batches=tuple(
                permutation[micro * self.batch_size : (micro + 1) * self.batch_size] for micro in range(first, last)
            ),
            last_micro_batch=epoch * self.micro_batches_per_epoch + last - 1,
        )


@functools.lru_cache(maxsize=2)
def _permutation(samples: int, seed: int, epoch: int) -> np.ndarray:
    return np.random.Generator(np.random.PCG64(np.random.SeedSequence([seed, epoch]))).permutation(samples)


@dataclass(frozen=True, kw_only=True)
class Batch:
    """Tensors of one pass. N positions are targets; ``select`` says where they stand among the B*T positions."""

    ids: Tensor  # (B, T)
    lengths: tuple[int, ...] | None  # packed: documents of the single row; None: padded rows
    select: Tensor  # (N,)
    targets: Tensor  # (N,)
    document: Tensor  # (N,) which document each target belongs to
    weights: Tensor  # (N,) one each, unless the stage weighs
    numbers: Tensor  # (documents,) which documents of the data they are
    documents: int
    count: int  # targets, each once
    tokens: int  # real ones, each document's first included

    def to(self, device: torch.device) -> Batch:
        """The same on another device."""
        if device.type == "cpu":
            return self
        moved = {
            name: getattr(self, name).pin_memory().to(device, non_blocking=True)
            for name in ("ids", "select", "targets", "document", "weights", "numbers")
        }
        return dataclasses.replace(self, **moved)


class Reader:
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
        self.shards, self.max_seq_len, self.pack = shards, max_seq_len, pack
        self.max_tokens_per_batch = max_tokens_per_batch
        self.weigh: Weigh = weigh or (lambda ids, flags: flags & TARGET)
        self.per_sample = DOCS_PER_SAMPLE[shards.kind]
        self.lengths = shards.lengths(max_seq_len)
        self.target_counts = shards.target_counts(max_seq_len)
        by_sample = self.target_counts.reshape(-1, self.per_sample)
        # a pair whose answer was cut away says nothing; a text without targets stays in the order and adds nothing
        keep = (by_sample > 0).all(1) if shards.kind == "pair" else np.ones(len(by_sample), bool)
        self.usable = np.flatnonzero(keep)
        self.dropped = len(by_sample) - len(self.usable)

    def count(self, samples: np.ndarray) -> int:
        """What a step over these samples divides by: targets, or pairs."""
        if self.shards.kind == "pair":
            return len(samples)
        return int(self.target_counts[self.usable[samples]].sum())

    def targets(self, samples: np.ndarray) -> int:
        """Target tokens of these samples."""
        return int(self.target_counts[self._documents(self.usable[samples])].sum())

    def tokens(self, samples: np.ndarray) -> int:
        """Real tokens of these samples after the cut."""
        return int(self.lengths[self._documents(self.usable[samples])].sum())

    def batches(self, samples: np.ndarray) -> Iterator[Batch]:
        """One micro-batch as passes of at most ``max_tokens_per_batch`` tokens; none when nothing in it is a target."""
        chosen = self.usable[samples]
        if self.per_sample == 1:
            chosen = chosen[self.target_counts[chosen] > 0]
        group: list[int] = []
        tokens = 0
        for sample in chosen:
            longest = int(self.lengths[self._documents(np.array([sample]))].sum())
            if group and self.max_tokens_per_batch and tokens + longest > self.max_tokens_per_batch:
                yield self._build(np.array(group))
                group, tokens = [], 0
            group.append(int(sample))
            tokens += longest
        if group:
            yield self._build(np.array(group))

    def silent(self) -> Batch:
        """A pass for a rank that has nothing to compute in a step: some sample, of which the caller takes none."""
        with_targets = (self.target_counts.reshape(-1, self.per_sample) > 0).all(1)
        return self._build(np.flatnonzero(with_targets)[:1])

    def _documents(self, samples: np.ndarray) -> np.ndarray:
        """Document numbers: all first ones (chosen), then all second ones (rejected)."""
        return np.concatenate([samples * self.per_sample + i for i in range(self.per_sample)])

    def _build(self, samples: np.ndarray) -> Batch:
        numbers = self._documents(samples)
        starts, lengths = self.shards.offsets[numbers], self.lengths[numbers]
        ids = [self.shards.ids[s : s + n].astype(np.int64) for s, n in zip(starts, lengths, strict=True)]
        if self.shards.kind == "wrapped":  # a text that is cut keeps its end token
            for document, number in zip(ids, numbers, strict=True):
                document[-1] = self.shards.ids[self.shards.offsets[number + 1] - 1]
        flags = [self.shards.targets[s + 1 : s + n] for s, n in zip(starts, lengths, strict=True)]
        weights = [self.weigh(document[1:], flag) for document, flag in zip(ids, flags, strict=True)]
        inputs = [document[:-1] for document in ids]
        width = self.max_seq_len - 1
        steps = [len(document) for document in inputs] if self.pack else [width] * len(inputs)
        bases = np.concatenate(([0], np.cumsum(steps[:-1]))).astype(np.int64)
        places = [np.flatnonzero(weight) for weight in weights]
        select = np.concatenate([base + place for base, place in zip(bases, places, strict=True)])
        targets = np.concatenate([document[1:][place] for document, place in zip(ids, places, strict=True)])
        document = np.repeat(np.arange(len(ids)), [len(place) for place in places])
        if self.pack:
            row = np.concatenate(inputs)[None]
        else:
            row = np.zeros((len(inputs), width), np.int64)  # the padding's id is never read: causal, and no target
            for index, document_ids in enumerate(inputs):
                row[index, : len(document_ids)] = document_ids
        return Batch(
            ids=torch.from_numpy(row),
            lengths=tuple(_lengths(inputs)) if self.pack else None,
            select=torch.from_numpy(select),
            targets=torch.from_numpy(targets),
            document=torch.from_numpy(document),
            weights=torch.from_numpy(
                np.concatenate([weight[place] for weight, place in zip(weights, places, strict=True)]).astype(
                    np.float32
                )
            ),
            count=sum(int((flag & TARGET).sum()) for flag in flags),
            numbers=torch.from_numpy(numbers),
            documents=len(ids),
            tokens=int(lengths.sum()),
        )


def _lengths(documents: Sequence[np.ndarray]) -> Iterator[int]:
    return (len(document) for document in documents)
