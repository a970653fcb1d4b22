"""The learning rate, as a function of the micro-batch."""

from __future__ import annotations

import math

from minimind.config import Schedule


def learning_rate(schedule: Schedule, peak: float, *, micro_batch: int, total: int) -> float:
    """The rate of an update whose last micro-batch is number ``micro_batch`` (from 0) of ``total``.

    minimind2 counts from 0 and starts at 1.1 of the peak; minimind3 counts from 1 and ends at 0.1; neither warms up.
    """
    if schedule == "minimind2":
        return peak / 10 + peak / 2 * (1 + math.cos(math.pi * micro_batch / total))
    if schedule == "minimind3":
        return peak * (0.1 + 0.45 * (1 + math.cos(math.pi * (micro_batch + 1) / total)))
    if schedule == "cosine":
        return peak / 2 * (1 + math.cos(math.pi * micro_batch / total))
    return peak
