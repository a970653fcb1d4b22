"""What one rank computes in a step, what it drops, and whose fault a number is that is none."""

from __future__ import annotations

import dataclasses
import heapq
from dataclasses import dataclass

import numpy as np

from minimind.batches import Batch, Reader, Step
from minimind.config import TrainConfig
from minimind.dist import World
from minimind.dropout import Dropout, keys
from minimind.prepare import TrainState
from minimind.rundir import Reason, RunError

LINES_NAMED = 20


@dataclass(frozen=True, kw_only=True)
class Pass:
    """One forward and backward: its batch, whether it counts, and its share of its micro-batch's texts."""

    batch: Batch
    weight: float = 1.0
    share: float = 1.0

    def pinned(self) -> Pass:
        """The same, its batch in memory that a GPU reads by itself."""
        return dataclasses.replace(self, batch=self.batch.pinned())


def shares(reader: Reader, step: Step, ranks: int) -> list[list[np.ndarray]]:
    """The micro-batches that each rank computes of a step: the same samples in every step, whoever computes them.

    All ranks wait for the slowest, and texts differ in length by ten times and more. So a round of micro-batches, one a
    rank, is dealt out by tokens: the longest sample first, each to the rank that has the fewest tokens so far.
    """
    dealt: list[list[np.ndarray]] = [list(step.micro_batches[rank::ranks]) for rank in range(ranks)]
    if reader.by_tokens and ranks > 1:
        dealt = [[] for _ in range(ranks)]
        for first in range(0, len(step.micro_batches), ranks):
            samples = np.concatenate(step.micro_batches[first : first + ranks])
            for rank, places in enumerate(deal(reader.places(samples), ranks)):
                if places:
                    dealt[rank].append(samples[sorted(places)])
    return [[np.concatenate(mine)] if reader.joins and mine else mine for mine in dealt]


def deal(tokens: np.ndarray, ranks: int) -> list[list[int]]:
    """Numbers of these samples for each rank, so that the largest sum of tokens is small."""
    mine: list[list[int]] = [[] for _ in range(ranks)]
    loads = [(0, rank) for rank in range(ranks)]
    for number in np.argsort(-tokens, kind="stable").tolist():
        load, rank = loads[0]
        mine[rank].append(number)
        heapq.heapreplace(loads, (load + int(tokens[number]), rank))
    return mine


def passes_of(state: TrainState, step: Step, ranks: World) -> list[Pass]:
    """Passes of this rank's micro-batches; asks no other rank, so that a thread may do it."""
    passes = []
    for samples in shares(state.reader, step, ranks.size)[ranks.rank]:
        batches = list(state.reader.batches(samples))
        texts = sum(batch.documents for batch in batches)
        passes += [Pass(batch=batch, share=batch.documents / texts) for batch in batches]
    return passes


def evened_out(state: TrainState, passes: list[Pass], ranks: World) -> list[Pass]:
    """The same passes; a rank with nothing to do takes part with one that weighs nothing.

    Where the model is sharded every pass gathers it from all ranks, so all of them make equally many.
    """
    wanted = ranks.largest(len(passes)) if ranks.sharded else 0
    wanted = max(wanted, int(ranks.size > 1))
    if len(passes) < wanted:
        silent = Pass(batch=state.reader.silent(), weight=0.0, share=0.0)
        return passes + [silent] * (wanted - len(passes))
    return passes


def dropout_of(config: TrainConfig, ranks: World, step: Step, one: Pass) -> Dropout | None:
    """What a pass drops."""
    if not config.dropout:
        return None
    batch = one.batch
    width = None if batch.lengths is not None else batch.ids.shape[1]
    names = keys(config.seed, step.epoch, batch.numbers, batch.widths, width)
    return Dropout(share=config.dropout, keys=names.to(ranks.device))


def not_finite(ranks: World, state: TrainState) -> RunError:
    """The paragraph after too many such steps, with the lines of the data that did it where a loss tells."""
    step, sound = state.order.step(state.step), state.step - state.bad_steps
    lines = sorted(ranks.gather(state.bad_samples))
    every = sorted(line for samples in step.micro_batches for line in state.reader.lines(samples))
    named = lines or every
    shown = ", ".join(map(str, named[:LINES_NAMED])) + (
        f" and {len(named) - LINES_NAMED} more" if len(named) > LINES_NAMED else ""
    )
    return RunError(
        f"the gradient was not finite in {state.bad_steps} steps in a row, the last is {state.step}",
        why=("training diverged, or these samples do it" if lines else "training diverged: every loss was finite")
        + f"; step {state.step} read lines {shown} of the data; none of these steps changed the weights",
        remedy="look at these lines; a new run with a lower --learning_rate may get over them. "
        + (f"The checkpoint of step {sound} is sound" if sound else "Nothing was learned, so nothing is saved"),
        reason=Reason.NAN_LOSS,
    )
