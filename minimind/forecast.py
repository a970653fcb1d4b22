"""What a training will do, as numbers and as lines: the trainer says them when it begins, ``plan`` before."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from minimind import sizes
from minimind.config import ModelConfig, TrainConfig
from minimind.order import Order, Samples
from minimind.schedule import learning_rate


@dataclass(frozen=True, kw_only=True)
class Data:
    """What one pass over the data holds, after the cut; ``exact`` unless it was projected from the file's beginning."""

    exact: bool
    samples: int
    bad_lines: int
    tokens: int
    targets: int
    cut_texts: int
    cut_tokens: int
    dropped_pairs: int
    packed_positions: int
    padded_positions: int
    remarks: tuple[str, ...] = ()
    """What of the file is not learned from, with the first places; empty where this was projected."""

    @property
    def fill(self) -> float:
        """Share of padded rows that would be real."""
        return self.packed_positions / max(1, self.padded_positions)


def measure(samples: Samples, *, name: str, factor: float = 1.0) -> Data:
    """Count what the file ``name`` holds; ``factor`` above 1 projects from the beginning of a file to all of it."""
    documents = samples.documents(samples.usable)
    lengths, counts = samples.lengths[documents], samples.target_counts[documents]
    cut = samples.shards.cut(samples.max_seq_len)
    computed = lengths[counts > 0] - 1  # a position for each token that has a next one

    def scaled(value: Any) -> int:
        return round(int(value) * factor)

    return Data(
        exact=factor == 1.0,
        samples=scaled(len(samples.usable)),
        bad_lines=scaled(samples.shards.meta.get("bad_lines", 0)),
        tokens=scaled(lengths.sum()),
        targets=scaled(counts.sum()),
        cut_texts=scaled(cut["documents"]),
        cut_tokens=scaled(cut["tokens"]),
        dropped_pairs=scaled(samples.dropped),
        packed_positions=scaled(computed.sum()),
        padded_positions=scaled(len(computed) * (samples.max_seq_len - 1)),
        remarks=tuple(samples.shards.remarks(name, samples.max_seq_len)) if factor == 1.0 else (),
    )


def most_tokens(config: TrainConfig, model: ModelConfig, *, on_cpu: bool) -> int | None:
    """The bound of a pass: as asked for, else on a CPU what keeps memory small; None without one.

    There a pass of a few thousand tokens is as fast as a larger one. On a GPU larger ones are faster.
    """
    if config.max_tokens_per_batch is not None:
        return config.max_tokens_per_batch if isinstance(config.max_tokens_per_batch, int) else None
    bounded = on_cpu and config.pack and not config.balanced_by_pass
    return sizes.pass_tokens(model) if bounded else None


def largest_pass(samples: Samples, config: TrainConfig, *, most: int | None) -> tuple[int, int]:
    """Tokens and targets of the largest pass, of at most ``most`` tokens; the first epoch says which samples meet."""
    in_order = samples.usable[order_of(config, len(samples.usable), micro_batches_per_step=1).epoch(1)]
    documents = samples.documents(in_order).reshape(samples.per_sample, -1)
    lengths, targets = (values[documents].sum(0) for values in (samples.lengths, samples.target_counts))  # (samples,)
    starts = np.arange(0, len(in_order), config.batch_size)
    tokens, wanted = (int(np.add.reduceat(values, starts).max()) for values in (lengths, targets))
    if not config.pack:
        tokens = min(config.batch_size, len(in_order)) * samples.per_sample * (samples.max_seq_len - 1)
    if most is not None and most < tokens:  # auto is found out on the GPU, and no more than fits there
        bound = max(most, int(lengths.max()))
        tokens, wanted = min(tokens, bound), min(wanted, bound)
    return tokens, wanted


def order_of(config: TrainConfig, samples: int, *, micro_batches_per_step: int) -> Order:
    """The order in which a run of this config takes so many samples."""
    return Order(
        samples=samples,
        batch_size=config.batch_size,
        micro_batches_per_step=micro_batches_per_step,
        epochs=config.epochs,
        seed=config.seed,
    )


def last_step(config: TrainConfig, order: Order) -> int:
    """The step that the run ends with."""
    return min(order.total_steps, config.max_steps or order.total_steps)


def saves(config: TrainConfig, order: Order, *, done: int = 0) -> int:
    """Checkpoints that are still written after step ``done``: one each interval, and one at the last step."""
    last = last_step(config, order)
    if done >= last:
        return 0
    return last // config.save_interval - done // config.save_interval + bool(last % config.save_interval)


def rates(config: TrainConfig, order: Order) -> tuple[float, float]:
    """Learning rates of the first and the last step."""
    first, last = (
        learning_rate(
            config.lr_schedule,
            config.learning_rate,
            micro_batch=order.last_micro_batch(number),
            total=order.total_micro_batches,
        )
        for number in (1, last_step(config, order))
    )
    return first, last


def same_step(config: TrainConfig, nproc: int) -> dict[str, int] | None:
    """Flags with which a step of ``nproc`` ranks holds the samples that a step of one rank would hold now.

    The order of samples does not depend on the number of ranks, so an equal number of samples is the same samples.
    None when the step cannot be shared out evenly.
    """
    if config.accumulation_steps % nproc == 0:
        return {"accumulation_steps": config.accumulation_steps // nproc}
    each, left = divmod(config.batch_size * config.accumulation_steps, nproc)
    if left:
        return None
    return {"batch_size": each, "accumulation_steps": 1}


def describe(data: Data, config: TrainConfig, order: Order, *, trained: int, where: str) -> tuple[str, list[str]]:
    """The line that sums a training up, and what else is worth a line."""
    about = "" if data.exact else "about "
    summary = (
        f"{about}{data.samples:,} samples, {data.tokens:,} tokens, {trained:,} trainable parameters, "
        f"{order.total_steps:,} steps ({order.steps_per_epoch:,} an epoch) on {where}"
    )
    notes = list(data.remarks)
    if data.cut_texts and not data.exact:
        notes.append(
            f"{data.cut_texts:,} texts are longer than {config.max_seq_len} tokens; {data.cut_tokens:,} tokens are cut"
        )
    if data.dropped_pairs:
        notes.append(f"{data.dropped_pairs:,} pairs are left out: the cut leaves one of their sides without an answer")
    if data.bad_lines and not data.exact:
        notes.append(f"{data.bad_lines:,} lines of the data are blank or were skipped as bad")
    last = last_step(config, order)
    if config.save_interval > last:
        notes.append(
            f"save_interval {config.save_interval} exceeds the {last} steps of this run: weights are saved at the end "
            "only"
        )
    return summary, notes
