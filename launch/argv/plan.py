"""The trainers' `plan`: its words, for this machine and for a host."""

from __future__ import annotations

from collections.abc import Sequence


def flags_only(stage: str, flags: Sequence[str]) -> list[str]:
    """Check the flags and look at nothing."""
    return ["plan", stage, "--flags_only", "--json", "--", *flags]


def of_run(
    stage: str,
    flags: Sequence[str],
    *,
    nproc: int,
    run_dir: str,
    read_only: bool,
    tokens_per_s: float | None = None,
) -> list[str]:
    """Plan a run; ``read_only`` writes nothing, not even the tokenised data."""
    quiet = ("--read_only",) if read_only else ()
    rate = ("--tokens_per_s", f"{tokens_per_s:.6g}") if tokens_per_s else ()
    return ["plan", stage, "--json", "--nproc", str(nproc), *rate, *quiet, "--", *flags, "--run_dir", run_dir]
