"""Which samples a step is made of: a pure function of (seed, epoch, step). numpy only, so that a plan needs no torch.

The world size is not among the arguments: it decides who computes a sample (passes.py deals them out) and never whether
it is in the step.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from minimind.rundir import Reason, RunError
from minimind.shards import DOCS_PER_SAMPLE, Shards


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

    def epoch(self, number: int) -> np.ndarray:
        """The samples of pass ``number``, from 1, in their order."""
        return _permutation(self.samples, self.seed, number - 1)

    def step(self, number: int) -> Step:
        """Step ``number``, from 1."""
        epoch, micro_batches = self._micro_batches(number)
        permutation = self.epoch(epoch + 1)
        return Step(
            number=number,
            epoch=epoch + 1,
            micro_batches=tuple(
                permutation[micro * self.batch_size : (micro + 1) * self.batch_size] for micro in micro_batches
            ),
            last_micro_batch=self.last_micro_batch(number),
        )

    def last_micro_batch(self, number: int) -> int:
        """Number of the last micro-batch of step ``number``, from 0 over all epochs."""
        epoch, micro_batches = self._micro_batches(number)
        return epoch * self.micro_batches_per_epoch + micro_batches[-1]

    def _micro_batches(self, number: int) -> tuple[int, range]:
        epoch, index = divmod(number - 1, self.steps_per_epoch)
        first = index * self.micro_batches_per_step
        return epoch, range(first, min(first + self.micro_batches_per_step, self.micro_batches_per_epoch))


@functools.lru_cache(maxsize=2)
def _permutation(samples: int, seed: int, epoch: int) -> np.ndarray:
    return np.random.Generator(np.random.PCG64(np.random.SeedSequence([seed, epoch]))).permutation(samples)


class Samples:
    """The samples of a file after the cut to ``max_seq_len``: which are used, and what each holds."""

    def __init__(self, shards: Shards, *, max_seq_len: int) -> None:
        self.shards, self.max_seq_len = shards, max_seq_len
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
        return int(self.target_counts[self.documents(self.usable[samples])].sum())

    def tokens(self, samples: np.ndarray) -> int:
        """Real tokens of these samples after the cut."""
        return int(self.lengths[self.documents(self.usable[samples])].sum())

    def computed(self, samples: np.ndarray) -> tuple[int, int]:
        """Places of these samples that a model computes, and pairs of a place and one that it attends to."""
        documents = self.documents(self.usable[samples])
        places = self.lengths[documents].astype(np.int64) - 1  # a place for each token that has a next one
        if self.per_sample == 1:
            places = places[self.target_counts[documents] > 0]
        return int(places.sum()), int((places * (places + 1) // 2).sum())

    def places(self, samples: np.ndarray) -> np.ndarray:
        """Places of each of these samples that a model computes, (samples,)."""
        numbers = self.usable[samples]
        places = np.zeros(len(numbers), np.int64)
        for side in range(self.per_sample):
            one = numbers * self.per_sample + side
            computed = self.target_counts[one] > 0 if self.per_sample == 1 else 1
            places += (self.lengths[one].astype(np.int64) - 1) * computed
        return places

    def documents(self, samples: np.ndarray) -> np.ndarray:
        """Document numbers: all first ones (chosen), then all second ones (rejected)."""
        return np.concatenate([samples * self.per_sample + i for i in range(self.per_sample)])

    def refuse_nothing(self, path: Path) -> None:
        """Raise when a training over these samples would learn from nothing.

        Raises:
            RunError: DATA_INVALID.
        """
        if not len(self.usable) or not self.target_counts.any():
            raise RunError(
                f"nothing in {path} can be learned from",
                why=f"no text has a target within {self.max_seq_len} tokens",
                remedy="raise --max_seq_len, or check that the file is of the kind that this stage reads",
                reason=Reason.DATA_INVALID,
            )
