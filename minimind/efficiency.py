"""Where the time of an attempt went, a warning when too much of it went astray, and one line at the end."""

from __future__ import annotations

import statistics
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

from minimind.flops import Cost
from minimind.history import WARM_UP_STEPS

LOADER_SHARE = 0.05
LEAST_MFU = 0.10
SAVE_SHARE, LOG_SHARE = 0.10, 0.05
LEAST_FILL = 0.7
FULL_PASS_TOKENS = 8192
"""Fewer tokens than these in one pass keep no large GPU busy."""
SMALL_PARAMETERS = 200_000_000
SHORT_STEP_S = 0.02
LEAST_STEPS, LEAST_S = 20, 20.0
"""What must have been seen before a warning."""
RATES_KEPT = 256
"""Steps at the end whose median is held against another run's, which is that of about as many."""


@dataclass(frozen=True, kw_only=True)
class Setting:
    """What of a training decides how busy its device can be."""

    cost: Cost
    parameters: int
    dtype: str
    pack: bool
    fill: float
    """Share of padded rows that is real."""
    log_interval: int
    compiled: bool
    peak_flops: float | None
    """Of all ranks together; None on a CPU, and where it is not known."""


@dataclass(kw_only=True)
class Spent:
    """Sums over the steps that count, rank 0's."""

    steps: int = 0
    passes: int = 0
    tokens: int = 0
    """Of all ranks."""
    pass_tokens: int = 0
    """Of this rank's passes."""
    flops: float = 0.0
    seconds: float = 0.0
    data_wait_s: float = 0.0
    save_s: float = 0.0
    log_s: float = 0.0

    def mfu(self, peak_flops: float | None) -> float | None:
        """Share of the peak that went into the model; None where the peak is not known."""
        return self.flops / (self.seconds * peak_flops) if peak_flops and self.seconds else None


@dataclass(kw_only=True)
class Account:
    """Rank 0's account of an attempt. ``clock`` is in seconds and never goes back."""

    setting: Setting
    say: Callable[[str], None]
    clock: Callable[[], float] = time.monotonic
    spent: Spent = field(default_factory=Spent)
    rates: deque[float] = field(default_factory=lambda: deque(maxlen=RATES_KEPT))
    """Tokens a second of single steps, as metrics.jsonl has them: without saves, logging and traces."""
    warned: bool = False
    seen: int = 0
    since: float = 0.0

    def step(
        self, *, tokens: int, passes: int, pass_tokens: int, flops: float, data_wait_s: float, step_s: float
    ) -> None:
        """One step has ended after ``step_s``, its line is not written yet."""
        self.seen += 1
        if self.seen <= WARM_UP_STEPS:
            return
        spent = self.spent
        spent.steps += 1
        spent.tokens += tokens
        self.rates.append(tokens / step_s)
        spent.passes += passes
        spent.pass_tokens += pass_tokens
        spent.flops += flops
        spent.data_wait_s += data_wait_s

    def settle(self, *, log_s: float, save_s: float, trace_s: float) -> None:
        """All that belongs to the step is done: count its time, and warn once if it is spent badly.

        Args:
            log_s: of its time, what went into its line.
            save_s: into a checkpoint.
            trace_s: into a profiler's trace, which was asked for and is nobody's fault: it does not count.
        """
        now = self.clock()
        if self.seen > WARM_UP_STEPS:
            self.spent.seconds += now - self.since - trace_s
            self.spent.log_s += log_s
            self.spent.save_s += save_s
        self.since = now
        if not self.warned and self.spent.steps >= LEAST_STEPS and self.spent.seconds >= LEAST_S:
            text = trouble(self.spent, self.setting)
            if text is not None:
                self.warned = True
                self.say(f"warning: {text}")

    def tell(self, *, saves: int, save_s: float, one_rank: tuple[float, str] | None, ranks: int) -> None:
        """Say the attempt in one line, unless it was too short to tell.

        Args:
            saves: checkpoints written in this attempt.
            save_s: how long training stood still for them.
            one_rank: tokens a second of one rank in a usual step, and the run that reached it.
            ranks: how many there are.
        """
        spent = self.spent
        if not spent.seconds:
            return
        rate = spent.tokens / spent.seconds
        parts = [f"{rate:,.0f} tokens/s over {spent.steps:,} steps"]
        if (mfu := spent.mfu(self.setting.peak_flops)) is not None:
            parts.append(f"MFU {mfu:.1%}")
        parts.append(f"{spent.data_wait_s / spent.seconds:.1%} of the time waiting for data")
        parts.append(f"{save_s:.1f} s standing still for {saves} checkpoint{'' if saves == 1 else 's'}")
        if one_rank is not None and ranks > 1:
            alone, name = one_rank
            times = statistics.median(self.rates) / alone
            parts.append(f"in the steps alone {times:.2f} times one rank ({name}): {times / ranks:.0%} efficient")
        self.say(", ".join(parts))


def trouble(spent: Spent, setting: Setting) -> str | None:
    """What is slow and why, most likely, with the figure that says so; None when nothing is."""
    waits = spent.data_wait_s / spent.seconds
    mfu = spent.mfu(setting.peak_flops)
    if waits > LOADER_SHARE:
        return f"the loader takes {waits:.0%} of the time ({spent.data_wait_s / spent.steps * 1e3:.1f} ms a step): " + (
            f"a step lasts {spent.seconds / spent.steps * 1e3:.0f} ms only: raise --batch_size"
            if spent.seconds / spent.steps < SHORT_STEP_S
            else "the disk under the data is slow or busy: put the data, or its .shards folder, on a local disk"
        )
    if mfu is not None and mfu < LEAST_MFU:
        return f"MFU is {mfu:.1%}: {_cause(spent, setting)}"
    return None


def _cause(spent: Spent, setting: Setting) -> str:
    saves, logs = spent.save_s / spent.seconds, spent.log_s / spent.seconds
    a_pass = spent.pass_tokens / max(1, spent.passes)
    if saves > SAVE_SHARE:
        return f"{saves:.0%} of the time goes into checkpoints: raise --save_interval, or write to a faster disk"
    if logs > LOG_SHARE:
        return f"{logs:.0%} of the time goes into logging: raise --log_interval (it is {setting.log_interval})"
    if not setting.pack and setting.fill < LEAST_FILL:
        return f"{1 - setting.fill:.0%} of the padded rows is padding: leave --no-pack away"
    if setting.dtype == "float32":
        return "it computes in float32: give --dtype bfloat16 (float16 where the GPU has no bfloat16)"
    if a_pass < FULL_PASS_TOKENS:
        return (
            f"a pass holds {a_pass:,.0f} tokens only: raise --batch_size and lower --accumulation_steps by as much, "
            "or raise --max_tokens_per_batch where it is given"
        )
    if setting.parameters < SMALL_PARAMETERS and not setting.compiled:
        return (
            f"with {setting.parameters:,} parameters the GPU waits for the next kernel's start: try --use_compile, and "
            "fewer GPUs for a model of this size"
        )
    return "none of the usual causes: look at a trace (--profile)"
