"""How many tokens a pass may hold on this GPU: found by trying real passes, never by guessing from sizes.

What a step is made of does not change, only how it is cut into passes; so losses agree to their last digits.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterable

import numpy as np
import torch

from minimind.batches import Batch, Reader
from minimind.config import UsageError
from minimind.dist import World
from minimind.durable import is_gpu_memory_full

KEPT_FREE = 0.1
"""Share of the memory that stays free: fragments, NCCL's buffers, a later pass with another shape."""
CLOSE_ENOUGH = 1.05
STEPS_LOOKED_AT = 200
"""Steps of the first epoch among which the heaviest pass is looked for."""


def refuse(ranks: World, *, balanced_by_pass: bool) -> None:
    """Raise where ``auto`` cannot be found out, or would decide what is learned.

    Raises:
        UsageError: on a CPU, for a sharded model, and for a mixture whose passes are balanced each by itself.
    """
    if balanced_by_pass:
        raise UsageError(
            "--max_tokens_per_batch auto does not work with minimind3's mixture of experts",
            why="its balancing loss is taken over each pass, so a GPU's free memory would decide what is learned",
            remedy="give a number (and the same one for every run that is to be compared), or leave it away",
        )
    if ranks.device.type != "cuda":
        raise UsageError(
            "--max_tokens_per_batch auto needs a GPU",
            why="it fills the memory of one; a CPU's is shared with all other programs, and larger passes are not "
            "faster there",
            remedy="leave it away, or give a number (`python -m minimind plan` says what a pass would need)",
        )
    if ranks.sharded:
        raise UsageError(
            "--max_tokens_per_batch auto does not work with --parallel fsdp",
            why="a pass that is too large for one rank would leave the others waiting for its shard",
            remedy="give a number",
        )


def bisect(fits: Callable[[int | None], bool], *, least: int, most: int) -> int | None:
    """The largest bound that fits, to 5 %; None when no bound is needed, ``least`` where nothing larger fits.

    Args:
        fits: whether passes of at most so many tokens do; None asks for no bound at all.
        least: tokens of the longest sample: it cannot be split.
        most: tokens of a rank's largest step.
    """
    if fits(None):
        return None
    low, high = least, most
    while high > low * CLOSE_ENOUGH:
        middle = (low + high) // 2
        if fits(middle):
            low = middle
        else:
            high = middle
    return low


def heaviest(reader: Reader, parts: Iterable[np.ndarray], most: int | None) -> np.ndarray:
    """Samples of the pass that needs the most memory among those of these parts: its tokens, and rows as padded."""

    def weight(group: np.ndarray) -> int:
        lengths = reader.lengths[reader.documents(group)]
        return int(lengths.sum() + len(lengths) * (lengths.max() if reader.pack else reader.max_seq_len))

    return max((group for part in parts for group in reader.groups(part, most)), key=weight)


def find(
    reader: Reader,
    parts: list[np.ndarray],
    ranks: World,
    *,
    attempt: Callable[[Batch], None],
    clear: Callable[[], None],
    reserved_bytes: int,
    say: Callable[[str], None],
) -> int | None:
    """The bound that fills this GPU's memory, the same on every rank.

    Args:
        reader: of the data.
        parts: samples that the passes of a rank's step are cut from, of some steps.
        ranks: all of which try the same passes.
        attempt: forward and backward of one batch, which leaves gradients behind and changes nothing else.
        clear: drops the gradients.
        reserved_bytes: what the optimiser will still allocate.
        say: where the result is told.
    """
    device = ranks.device
    torch.cuda.synchronize(device)
    torch.cuda.empty_cache()
    free_bytes, total_bytes = torch.cuda.mem_get_info(device)
    budget_bytes = torch.cuda.memory_reserved(device) + free_bytes - int(KEPT_FREE * total_bytes) - reserved_bytes
    peaks: dict[int | None, int] = {}

    def fits(most: int | None) -> bool:
        batch = reader.build(heaviest(reader, parts, most))
        try:
            torch.cuda.reset_peak_memory_stats(device)
            for _ in range(2):  # the second finds the first one's gradients
                attempt(batch)
            torch.cuda.synchronize(device)
            peaks[most] = torch.cuda.max_memory_reserved(device)
            good = peaks[most] <= budget_bytes
        except RuntimeError as error:
            if not is_gpu_memory_full(error):
                raise
            good = False
        clear()
        gc.collect()
        torch.cuda.empty_cache()
        return not ranks.largest(int(not good))

    tokens = [int(reader.lengths[reader.documents(reader.usable[part])].sum()) for part in parts]
    sides = reader.lengths[reader.documents(reader.usable)].reshape(reader.per_sample, -1).sum(0)
    found = bisect(fits, least=int(sides.max()), most=max(tokens))
    told = f"of {max(tokens):,} tokens" if found is None else f"of at most {found:,} of up to {max(tokens):,} tokens"
    peak = f", {peaks[found] / 1e9:.1f} of {total_bytes / 1e9:.1f} GB at the peak" if found in peaks else ""
    say(f"--max_tokens_per_batch auto: passes {told} a step{peak}")
    return found
