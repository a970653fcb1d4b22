"""`launch secrets check`: which secrets are found where, and whether a value lies where it should not."""

from __future__ import annotations

import json
import stat
from pathlib import Path
from typing import Any

import click

from launch import leaks
from launch.cli import session
from launch.errors import Exit, LaunchError
from launch.inventory import Inventory
from launch.secrets import KEYRING_SERVICE, WANDB, Vault
from launch.ui import table

SCAN_TIMEOUT_S = 600


@click.group()
def secrets() -> None:
    """Show which secrets are found, and whether one lies around."""


@secrets.command()
@click.argument("host", required=False)
@session.json_option
def check(host: str | None, as_json: bool) -> int:
    """Say where each secret is found, and look for its value in files here and on HOST; no value is ever shown."""
    known = session.load()
    vault, wanted = session.vault(), _wanted(known, host)
    rows = [_row(name, vault) for name in wanted]
    values = {name: secret.reveal() for name, secret in vault.found.items()}
    places = [{"where": "this machine", **leaks.scan(values, _here(known))}] if values else []
    if host is not None and values:
        places.append({"where": host, **_there(known, host, values)})
    if as_json:
        session.print_json({"secrets": rows, "places": places})
    else:
        _show(rows, places)
    if any(place["hits"] for place in places):
        return int(Exit.NOT_VERIFIED)
    return int(Exit.INVALID if any(row["trouble"] for row in rows) else Exit.OK)


def _wanted(known: Inventory, host: str | None) -> list[str]:
    hosts = [known.host(host)] if host else known.hosts.values()
    named = (name for h in hosts for name in (*h.secrets, h.registry_secret) if name)
    return list(dict.fromkeys((*named, WANDB)))


def _row(name: str, vault: Vault) -> dict[str, Any]:
    secret = vault.found.get(name)
    trouble: str | None = None
    try:
        vault.pick([name])
    except LaunchError as error:
        trouble = None if secret is None and name == WANDB else error.why
    from_file = secret is not None and secret.source == str(vault.file)
    mode = f"{stat.S_IMODE(vault.file.stat().st_mode):04o}" if from_file else None
    return {"name": name, "source": secret.source if secret else None, "mode": mode, "trouble": trouble}


def _here(known: Inventory) -> list[str]:
    """launch.toml, the copies of runs, the runs of this machine, crash reports, shell histories."""
    local = known.host("local").root
    files = [str(known.path)] if known.path else []
    return [
        *files,
        str(known.home / "runs"),
        f"{local}/runs",
        str(Path("~/.cache/minimind-launch/crash-*")),
        *leaks.HISTORIES,
    ]


def _there(known: Inventory, host: str, values: dict[str, str]) -> dict[str, Any]:
    from launch.runs.start import look
    from launch.transport import connect

    with connect(known.host(host), known) as transport:
        facts = look(transport)
        if facts.python is None:
            raise LaunchError(
                f"{host} could not be searched",
                why="no Python was found there",
                remedy=f"install one, or set python = PATH for {host}",
                code=Exit.HOST_NOT_READY,
            )
        paths = [f"{facts.root}/runs", "/dev/shm/minimind-*", *leaks.HISTORIES]  # noqa: S108
        asked = json.dumps({"values": values, "paths": paths}).encode()
        argv = [facts.python, "-c", Path(leaks.__file__).read_text()]
        told: dict[str, Any] = json.loads(transport.read(argv, stdin=asked, timeout_s=SCAN_TIMEOUT_S).stdout)
    return told


def _show(rows: list[dict[str, Any]], places: list[dict[str, Any]]) -> None:
    cells = [(row["name"], row["source"] or "not found", row["mode"], row["trouble"] or "ok") for row in rows]
    table(("secret", "where", "mode", "verdict"), cells)
    for place in places:
        for hit in place["hits"]:
            click.echo(f"{place['where']}: the value of {hit['secret']} stands in {hit['path']}", err=True)
        skipped = f", {place['skipped']} not (too large, or not readable)" if place["skipped"] else ""
        found = f"{len(place['hits'])} with a secret in them" if place["hits"] else "no secret in them"
        click.echo(f"{place['where']}: {place['files']} files looked into{skipped}: {found}", err=True)
    if any(place["hits"] for place in places):
        click.echo("replace these secrets by new ones, then remove those files or lines", err=True)
    elif not any(row["source"] for row in rows):
        click.echo(f"found none; looked into the environment, the file and the keyring ({KEYRING_SERVICE})", err=True)
