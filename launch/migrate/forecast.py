"""What a move would do, what it would take in bytes, time and money. Nothing is changed anywhere for it."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping
from typing import Any

from launch import environment
from launch.argv import migrate as argv
from launch.doctor import Report
from launch.errors import LaunchError
from launch.executors import EXECUTORS, Environment
from launch.inventory import Host
from launch.migrate import numbers, place
from launch.migrate.finish import cost
from launch.migrate.move import Move, Subject
from launch.migrate.prepare import look
from launch.migrate.survey import Survey, need_not_come_home, refuse_without_room, survey
from launch.runs import control
from launch.transport import Transport

PROBE_BYTES = 2 << 20
LEAST_S = 0.01


def forecast(move: Move) -> Mapping[str, Any]:
    """The plan of a move, ready for JSON. ``problems`` are what would stop it, as far as can be seen now.

    Raises:
        LaunchError: when a host cannot be asked, or the move would be refused at once.
    """
    source, target = move.asked.source, move.asked.target
    place.refuse_one_by_looking(move)
    problems = [*_unfit(look(move, move.target, target))]
    found = survey(move)
    try:
        refuse_without_room(move, found, straight_bytes=_straight_bytes(move, found))
    except LaunchError as error:
        problems.append({"what": error.what, "why": error.why, "remedy": error.remedy})
    image_bytes = 0
    for shipment in found.shipments:
        try:
            image_bytes += shipment.missing_bytes(move.target, move.ends.laptop)
        except LaunchError as error:
            image_bytes += shipment.image.bytes
            problems.append({"what": error.what, "why": error.why, "remedy": error.remedy})
    down, up = _down(move.source), _up(move.target)
    data_send = sum(
        one.file.length_bytes
        for one, digest in zip(
            found.data, move.upload.there([one.item(move.journal.spool) for one in found.data]), strict=True
        )
        if digest != one.file.sha256
    )
    steps = [
        _step("check", "doctor on both hosts, room on both sides"),
        _step("environment", _environment(found), image_bytes, up),
        _step(
            "data",
            f"{len(found.data)} files; large ones straight there if one host reaches the other",
            data_send,
            up,
            found.data_home_bytes,
            down,
        ),
        _step("stop", _stop(move, found)),
        _step("save", f"out/ and runs/ of {source.name} to {move.home}", found.home_bytes, down),
        _step(
            "send",
            f"out/ and {len(found.moved)} unfinished run(s) to {target.name}:{move.target_root}",
            found.send_bytes - data_send,
            up,
        ),
        _step("verify", f"sha256 of {found.data_bytes + sum(item.length_bytes for item in found.items)} bytes there"),
        _step("smoke", "an all-reduce and three training steps; how long is not known before"),
        _step("continue", _continue(move, found)),
        _step("report", "what changed"),
    ]
    seconds = sum(step["seconds"] or 0 for step in steps)
    return {
        "from": source.name,
        "to": target.name,
        "steps": steps,
        "done": sorted(move.journal.steps),
        "moved": list(found.moved),
        "stay": list(found.stays),
        "left": [{"name": odd.name, "why": odd.why} for odd in found.left],
        "home_bytes": found.home_bytes + found.data_home_bytes,
        "send_bytes": found.send_bytes + image_bytes,
        "room_bytes": found.room_bytes,
        "free_bytes": found.facts.free_bytes,
        "down_bytes_per_s": round(down),
        "up_bytes_per_s": round(up),
        "seconds": round(seconds, 1),
        "cost": cost(seconds, source, target),
        "problems": problems,
        **_numbers(move, found),
    }


def _straight_bytes(move: Move, found: Survey) -> int:
    """What would go straight to the target, as far as an open port tells: whether a key opens it is not tried."""
    origins = need_not_come_home(move, found.data)
    if not origins:
        return 0
    name = f"to {move.asked.target.name}"
    reaches = any(
        check.name == name and check.verdict == "ok" for check in look(move, move.source, move.asked.source).checks
    )
    return sum(origin.length_bytes for origin in origins.values()) if reaches else 0


def _step(
    name: str, what: str, length_bytes: int = 0, rate: float = 0.0, first_bytes: int = 0, first_rate: float = 0.0
) -> dict[str, Any]:
    moves = [(length_bytes, rate), (first_bytes, first_rate)]
    took_s = sum(size / speed for size, speed in moves if size and speed)
    return {"name": name, "what": what, "bytes": length_bytes + first_bytes, "seconds": round(took_s, 1) or None}


def _unfit(report: Report) -> list[dict[str, str | None]]:
    return [
        {"what": f"{report.host}: {check.name}", "why": check.found, "remedy": check.remedy}
        for check in report.checks
        if check.verdict == "unfit"
    ]


def _environment(found: Survey) -> str:
    if not found.tasks:
        return f"{found.executor}: it is there"
    if found.shipments:
        return "docker: the image is shipped, only the layers that are missing"
    return f"{found.executor}: " + ", ".join(type(task).__name__ for task in found.tasks)


def _stop(move: Move, found: Survey) -> str:
    if not found.alive:
        return f"nothing runs on {move.asked.source.name}"
    runs = ", ".join(f"{run.run_id} (step {run.state.last_step})" for run in found.alive)
    return f"wait for {runs} to end" if move.asked.wait else f"{runs} save and leave"


def _continue(move: Move, found: Survey) -> str:
    if move.asked.stage:
        return f"start {move.asked.stage} on {move.asked.target.name}"
    if found.goes_on is None:
        return "no run was interrupted: nothing is started"
    ranks = move.ranks(found.facts, control.spec_of(found.goes_on))
    return f"{found.goes_on.run_id} goes on with {ranks} rank(s)"


def _numbers(move: Move, found: Survey) -> dict[str, Any]:
    """Batch, steps and rates with the ranks of now and of then; asked of the source, whose run has its data ready."""
    run, nothing = found.goes_on, {"before": None, "after": None}
    if run is None or run.spec.get("executor") != "venv":  # a container, even a short one, would be made there
        return nothing
    spec = control.spec_of(run)
    wanted = Environment(lock_hash=spec.lock_hash, code_hash=spec.code_hash)
    try:
        site, _ = move.ends_of_source().visit((), wanted)
        provided = environment.recall("venv", site, wanted)
        if provided.tasks:  # nothing is made for a forecast
            return nothing
    except LaunchError:
        return nothing
    tried = Subject(spec=spec, nproc=spec.nproc, environment=provided.environment, run_dir=run.run_dir)
    tail = ["tail", "-n", str(numbers.LOOKED_AT), f"{run.run_dir}/metrics.jsonl"]
    rate = numbers.rate_of(move.source.read(tail, check=False).stdout)

    def of(ranks: int, host: Host, rate: float | None) -> Mapping[str, Any] | None:
        return numbers.ask(move.source, EXECUTORS["venv"], site.facts, tried, nproc=ranks, rate=rate, host=host)

    before = of(int(run.handle.get("nproc") or spec.nproc), move.asked.source, rate)
    return {"before": before, "after": of(move.ranks(found.facts, spec), move.asked.target, None)}


def _down(transport: Transport) -> float:
    """Bytes a second from a host."""
    return _speed(transport, lambda: len(transport.read(argv.answers_fast(PROBE_BYTES), check=False).stdout))


def _up(transport: Transport) -> float:
    """Bytes a second to a host."""
    data = os.urandom(PROBE_BYTES)

    def send() -> int:
        transport.read(argv.swallow(), stdin=data, check=False)
        return len(data)

    return _speed(transport, send)


def _speed(transport: Transport, move_some: Callable[[], int]) -> float:
    began_s = time.monotonic()
    transport.read(["true"], check=False)
    between_s = time.monotonic()
    length_bytes = move_some()
    took_s = (time.monotonic() - between_s) - (between_s - began_s)
    return length_bytes / max(LEAST_S, took_s)
