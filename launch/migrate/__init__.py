"""Moving to another host, as a list of steps that can be cut off anywhere and taken up again."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

from launch.errors import Exit, LaunchError
from launch.migrate.carry import Save, Send, SendData, Verify
from launch.migrate.ended import report_again
from launch.migrate.finish import Continue, Report
from launch.migrate.journal import Journal
from launch.migrate.move import Asked, Move, Step
from launch.migrate.prepare import Check, Prepare, Stop
from launch.migrate.trial import Smoke

__all__ = ["Asked", "Journal", "Move", "carry_out", "steps_of"]


def steps_of(move: Move) -> list[Step]:
    """All steps, in their order."""
    makers: tuple[type[Step], ...] = (Check, Prepare, SendData, Stop, Save, Send, Verify, Smoke, Continue, Report)
    return [make(move) for make in makers]


def carry_out(move: Move) -> Mapping[str, Any]:
    """Do what is left of the move; returns its report.

    Once the run goes on on the target, nothing before that is looked at again: it would be overwritten. A move that
    has ended only shows its report.

    Raises:
        LaunchError: what a step could not do. The same again goes on there.
    """
    if move.journal.ended:
        return report_again(move)
    steps = steps_of(move)
    going = next(step for step in steps if isinstance(step, Continue))
    begun = going.happened() if going.name not in move.journal else None
    if begun is not None:
        move.journal.record(going.name, going.facts(begun))
    first = steps.index(going) + 1 if going.name in move.journal else 0
    for number, step in enumerate(steps, start=1):
        try:
            if number <= first or step.done():
                move.voice.say(f"[{number}/{len(steps)}] {step.name}: done before")
                continue
            move.voice.say(f"[{number}/{len(steps)}] {step.name}: {step.what}")
            move.journal.forget(*(later.name for later in steps[number:] if later.name not in step.spares))
            began_s = time.monotonic()
            facts = step.run()
        except LaunchError as error:
            raise _within(error, step, steps[number - 1 :]) from error
        move.journal.record(step.name, {**facts, "took_s": round(time.monotonic() - began_s, 2)})
    return move.journal.facts("report")


def _within(error: LaunchError, step: Step, left: Sequence[Step]) -> LaunchError:
    """A host that goes away says in which step, and what is left."""
    if error.code != Exit.UNREACHABLE:
        return error
    return LaunchError(
        error.what,
        why=f"{error.why} (in the step {step.name}; left: {', '.join(one.name for one in left)})",
        remedy=f"{error.remedy}; then the same command again: it goes on with {step.name}",
        code=error.code,
    )
