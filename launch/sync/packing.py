"""Whether packing pays: weights hardly shrink, so only a slow link gains from it."""

from __future__ import annotations

import time
import zlib
from collections.abc import Callable

SAMPLE_BYTES = 4 << 20
FROM_BYTES = 32 << 20
"""Less than this is there before a sample has told anything."""
ZSTD_BYTES_PER_S = 150e6
"""What zstd -1 packs at least on one core of a rented host."""
GAIN = 0.95


class Meter:
    """The rate of a link, seen from the moment at which the first bytes came; ``pass_on`` hears of all of them."""

    def __init__(self, pass_on: Callable[[int], None]) -> None:
        self._pass_on = pass_on
        self._began_s: float | None = None
        self._last_s = 0.0
        self._later_bytes = 0

    def __call__(self, count: int) -> None:
        """So many bytes came."""
        self._last_s = time.monotonic()
        if self._began_s is None:
            self._began_s = self._last_s
        else:
            self._later_bytes += count
        self._pass_on(count)

    @property
    def bytes_per_s(self) -> float:
        """Infinite when everything came at once."""
        passed_s = self._last_s - (self._began_s or 0.0)
        return self._later_bytes / passed_s if passed_s > 0 else float("inf")


def shrinks_to(sample: bytes) -> float:
    """The share of itself that a sample needs when it is packed; deflate is close enough to zstd -1 to decide by."""
    return len(zlib.compress(sample, 1)) / len(sample) if sample else 1.0


def pays(share: float, bytes_per_s: float) -> bool:
    """Whether packed bytes are home sooner: the link carries fewer of them, and packing must keep up with it."""
    return max(share / bytes_per_s, 1 / ZSTD_BYTES_PER_S) < GAIN / bytes_per_s
