"""What the move changes for a training: batch, steps, rates, time and cost of an epoch, as the trainers' plan says."""

from __future__ import annotations

import json
import statistics
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from launch.argv import plan as argv
from launch.executors import EXECUTORS, Executor
from launch.facts import HostFacts
from launch.inventory import Host
from launch.migrate.move import Move, Subject
from launch.runs.forecast import TIMEOUT_S
from launch.runs.start import attempt_of
from launch.transport import Transport
from minimind.rundir import RunSpec

LOOKED_AT = 100
"""Lines of metrics.jsonl: the latest say how fast it is, the first steps are slow."""


def before_and_after(
    move: Move, tried: Subject, facts: HostFacts, *, rate: float | None
) -> Mapping[str, Mapping[str, Any] | None]:
    """Numbers of the same training on the source's ranks and on the target's; asked of the target, which has the data.

    ``rate`` is what the trial reached, in tokens a second.
    """
    ranks, earlier = ranks_and_rate(move, tried.spec.run_id)
    executor = EXECUTORS[tried.spec.executor]
    return {
        "before": ask(move.target, executor, facts, tried, nproc=ranks, rate=earlier, host=move.asked.source),
        "after": ask(move.target, executor, facts, tried, nproc=tried.nproc, rate=rate, host=move.asked.target),
    }


def ranks_and_rate(move: Move, run_id: str) -> tuple[int, float | None]:
    """How many ranks the run had on the source, and its tokens a second; of a new run, the ranks of the newest one."""
    runs = move.home / "runs"
    newest = str(move.journal.facts("save").get("newest") or run_id)
    folder = runs / run_id if (runs / run_id).is_dir() else runs / newest
    told = _json(folder / "env.json").get("nproc") or _json(folder / "spec.json").get("nproc") or 1
    metrics = folder / "metrics.jsonl"
    return int(told), rate_of(metrics.read_bytes()) if folder.name == run_id and metrics.is_file() else None


def rate_of(metrics: bytes) -> float | None:
    """Tokens a second over the last steps of a run, from its metrics.jsonl."""
    rates = []
    for line in metrics.splitlines()[-LOOKED_AT:]:
        try:
            rates.append(float(json.loads(line)["tokens_per_s"]))
        except (ValueError, LookupError, TypeError):
            continue
    return statistics.median(rates) if rates else None


def ask(
    transport: Transport,
    executor: Executor,
    facts: HostFacts,
    tried: Subject,
    *,
    nproc: int,
    rate: float | None,
    host: Host,
) -> Mapping[str, Any] | None:
    """The numbers of a training with so many ranks and that rate; None when there is no plan of it."""
    spec: RunSpec = tried.spec
    words = argv.of_run(spec.stage, spec.flags, nproc=nproc, run_dir=tried.run_dir, read_only=True, tokens_per_s=rate)
    root = tried.run_dir.rpartition("/runs/")[0]
    attempt = attempt_of(spec, tried.run_dir, root, tried.environment, number=1, nproc=None, hand={}, memory=None)
    told = transport.read(executor.use(facts, attempt, words), check=False, timeout_s=TIMEOUT_S)
    try:
        plan = json.loads(told.stdout)
        epoch_s = plan["data"]["tokens"] / rate if rate else None
        price = host.price_per_hour
        return {
            "host": host.name,
            "nproc": nproc,
            "samples_per_step": plan["batch"]["samples_per_step"],
            "steps_per_epoch": plan["steps"]["per_epoch"],
            "steps": plan["steps"]["last"],
            "done": plan["steps"]["done"],
            "learning_rate": plan["batch"]["learning_rate"],
            "tokens_per_s": rate,
            "epoch_s": epoch_s,
            "price_per_hour": price,
            "currency": host.currency,
            "epoch_cost": None if epoch_s is None or price is None else epoch_s / 3600 * price,
        }
    except (ValueError, LookupError, TypeError):
        return None


def _json(path: Path) -> dict[str, Any]:
    try:
        told = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return {}
    return told if isinstance(told, dict) else {}


def lines(numbers: Mapping[str, Mapping[str, Any] | None]) -> list[tuple[str, str, str]]:
    """What changes, a row each: name, before, after."""
    before, after = numbers.get("before") or {}, numbers.get("after") or {}
    if not before or not after:
        return []

    def both(name: str, show: str, key: str) -> tuple[str, str, str]:
        one, other = ("not known" if told.get(key) is None else show.format(told[key]) for told in (before, after))
        return name, one, other

    first_last = [f"{rates[0]:.3g} to {rates[1]:.3g}" for rates in (before["learning_rate"], after["learning_rate"])]
    rows = [
        both("host", "{}", "host"),
        both("ranks", "{}", "nproc"),
        both("samples in a step", "{:,}", "samples_per_step"),
        both("steps an epoch", "{:,}", "steps_per_epoch"),
        ("learning rate", *first_last),
        both("tokens a second", "{:,.0f}", "tokens_per_s"),
        both("seconds an epoch", "{:,.1f}", "epoch_s"),
    ]
    costs = [
        "not known" if told.get("epoch_cost") is None else f"{told['epoch_cost']:.4g} {told['currency']}"
        for told in (before, after)
    ]
    return [*((name, one, other) for name, one, other in rows), ("cost of an epoch", costs[0], costs[1])]
