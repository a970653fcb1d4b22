"""`launch hosts`: every host, whether it answers, and what it is."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import click

from launch.cli import session
from launch.errors import LaunchError
from launch.inventory import Host, Inventory
from launch.ui import table


@click.command()
@session.json_option
def hosts(as_json: bool) -> int:
    """Show every host, whether it answers, and what it is; the exit code is 4 when one does not answer."""
    known = session.load()
    with ThreadPoolExecutor(max_workers=16) as pool:
        rows = list(pool.map(lambda host: _row(host, known), known.hosts.values()))
    if as_json:
        session.print_json(rows)
    else:
        table(("host", "address", "executor", "answers", "what it is"), [_cells(row) for row in rows])
    for row in rows:
        if error := row["error"]:
            state = "" if row["reachable"] else " is UNKNOWN"
            session.terminal.say(f"{row['host']}{state}: {error['what']}\n  remedy: {error['remedy']}")
    return session.worst(row["error"]["code"] for row in rows if row["error"])


def _row(host: Host, known: Inventory) -> dict[str, Any]:
    from launch.executors import choose
    from launch.runs.start import look
    from launch.transport import connect

    row: dict[str, Any] = {
        "host": host.name,
        "ssh": host.ssh,
        "root": host.root,
        "executor": host.executor,
        "price_per_hour": host.price_per_hour,
        "currency": host.currency,
        "reachable": False,
        "facts": None,
        "error": None,
    }
    try:
        with connect(host, known) as transport:
            facts = look(transport)
    except LaunchError as error:
        return row | {"error": _said(error)}
    told = {
        "system": facts.system,
        "arch": facts.arch,
        "cpus": facts.cpus,
        "gpus": list(facts.gpus),
        "docker": facts.docker_usable,
        "in_container": facts.in_container,
        "python": ".".join(map(str, facts.python_version)) if facts.python_version else None,
        "rsync": facts.rsync,
        "free_bytes": facts.free_bytes,
    }
    row |= {"reachable": True, "facts": told}
    try:
        return row | {"executor": choose(host, facts).name}
    except LaunchError as error:
        return row | {"error": _said(error)}


def _said(error: LaunchError) -> dict[str, Any]:
    return {"what": error.what, "why": error.why, "remedy": error.remedy, "code": int(error.code)}


def _cells(row: dict[str, Any]) -> list[object]:
    facts = row["facts"]
    if facts is None:
        return [row["host"], row["ssh"] or "this machine", row["executor"], "no", ""]
    gpus = f"{len(facts['gpus'])} GPU ({facts['gpus'][0]})" if facts["gpus"] else "no GPU"
    free = "" if facts["free_bytes"] is None else f", {facts['free_bytes'] / 1e9:.0f} GB free"
    what = f"{facts['system']} {facts['arch']}, {facts['cpus']} CPUs, {gpus}{free}"
    return [row["host"], row["ssh"] or "this machine", row["executor"], "yes", what]
