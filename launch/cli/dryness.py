"""What `launch run --dry-run` shows."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import click

from launch.cli import session
from launch.errors import printable
from launch.runs import forecast, start
from launch.transport import DryStep


def show(plan: start.Plan, record: Sequence[DryStep], found: Mapping[str, Any], *, as_json: bool) -> int:
    """Every command, file and byte count, and the trainer's plan where it could be had."""
    if as_json:
        steps = [
            {key: value for key, value in dataclasses.asdict(step).items() if key != "data" and value}
            for step in record
        ]
        session.print_json(
            {"spec": dataclasses.asdict(plan.spec), "run_dir": plan.run_dir, "steps": steps, "plan": found or None}
        )
        return 0
    click.echo(f"would start {plan.spec.run_id}:\n{plan.spec.to_json().decode()}")
    for line in forecast.lines(found):
        click.echo(printable(line))
    for step in record:
        click.echo(step.describe())
    click.echo(f"{sum(step.length_bytes for step in record)} bytes in {len(record)} steps; nothing was changed")
    return 0
