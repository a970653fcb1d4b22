"""One line of the doctor: what was looked at, how good it is, what was found, and what to do."""

from __future__ import annotations

import enum
from collections.abc import Iterable
from dataclasses import dataclass


class Verdict(enum.StrEnum):
    """From good to bad; the worst of a host's lines is the host's."""

    OK = "ok"
    WARN = "warn"
    UNFIT = "unfit"

    @classmethod
    def worst(cls, verdicts: Iterable[Verdict]) -> Verdict:
        """The worst of them; ok when there is none."""
        return max(verdicts, key=list(cls).index, default=cls.OK)


@dataclass(frozen=True, kw_only=True)
class Check:
    """``remedy`` is there whenever the verdict is not ok."""

    name: str
    verdict: Verdict
    found: str
    remedy: str | None = None


def ok(name: str, found: str) -> Check:
    """Nothing to do."""
    return Check(name=name, verdict=Verdict.OK, found=found)


def warn(name: str, found: str, remedy: str) -> Check:
    """It works, with something to know."""
    return Check(name=name, verdict=Verdict.WARN, found=found, remedy=remedy)


def unfit(name: str, found: str, remedy: str) -> Check:
    """Training there would fail or lose something."""
    return Check(name=name, verdict=Verdict.UNFIT, found=found, remedy=remedy)


def amount(length_bytes: float) -> str:
    """Bytes for people, in powers of 1000."""
    for unit in ("B", "kB", "MB", "GB"):
        if length_bytes < 1000:
            return f"{length_bytes:.0f} {unit}" if unit in ("B", "kB", "MB") else f"{length_bytes:.1f} {unit}"
        length_bytes /= 1000
    return f"{length_bytes:.1f} TB"
