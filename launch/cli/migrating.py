"""What `launch migrate` shows: its plan, and its report."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from launch.cli import session
from launch.errors import Exit, printable
from launch.ui import table

if TYPE_CHECKING:
    from launch.migrate import Move


def forecast(move: Move, *, as_json: bool) -> int:
    """The plan of a dry run; returns the exit code."""
    from launch.migrate import forecast as planned

    plan = planned.forecast(move)
    if as_json:
        session.print_json(plan)
    else:
        rows = [(s["name"], s["bytes"] or "", s["seconds"] or "", printable(s["what"])) for s in plan["steps"]]
        table(("step", "bytes", "s", ""), rows)
        _changes(plan)
    say = session.terminal.say
    for problem in plan["problems"]:
        say(f"in the way: {problem['what']}: {problem['why']}; {problem['remedy']}")
    moved = f"{plan['home_bytes']} bytes home, {plan['send_bytes']} bytes to {plan['to']}"
    say(f"{moved}, {_money(plan)}; nothing was changed")
    return int(Exit.HOST_NOT_READY if plan["problems"] else Exit.OK)


def _money(told: Mapping[str, Any]) -> str:
    cost = ", ".join(f"{amount} {currency}" for currency, amount in told["cost"].items())
    return f"about {told['seconds']} s" + (f", {cost} for both hosts" if cost else "")


def _changes(told: Mapping[str, Any]) -> None:
    from launch.migrate.numbers import lines

    if rows := lines(told):
        table(("", "before", "after"), rows)


def show(report: Mapping[str, Any], *, again: bool) -> None:
    """The report of a move; ``again`` says that it is of one that ended before."""
    say = session.terminal.say
    are = "came, verified, to" if again else "are, verified, on"
    say(f"{report['files']} files, {report['bytes']} bytes of {report['from']} {are} {report['to']}")
    if report.get("direct_bytes"):
        say(f"{report['direct_bytes']} bytes went straight from {report['from']} to {report['to']}")
    say(f"it took {_money(report)}")
    for remark in (*report["remarks"], *(f"left there: {odd['name']}: {odd['why']}" for odd in report["left"])):
        say(f"{report['from']}: {remark}")
    _changes(report)
    if report["follow"]:
        goes = "went on" if again else "goes on"
        say(f"{report['run_id']} {goes} on {report['to']}, attempt {report['attempt']}: {report['follow']}")
    else:
        say(f"nothing was started on {report['to']}")
    if not again:
        last = f"; when you need it no more: {report['release']}" if report["release"] else ""
        say(f"{report['from']} still has everything{last}")
