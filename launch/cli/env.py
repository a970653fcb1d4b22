"""`launch env`: environments on hosts, held against the lock, listed, removed."""

from __future__ import annotations

import dataclasses

import click

from launch.cli import session
from launch.errors import Exit

HOST = click.argument("host", default="local")


@click.group()
def env() -> None:
    """Check, list or remove environments on a host."""


@env.command()
@HOST
@session.json_option
def check(host: str, as_json: bool) -> int:
    """Compare what is installed for runs on HOST with the lock; exit 5 where a package has drifted or lacks files.

    Looks into the environment that a run started now would get: the image, the virtual environment, or the interpreter
    that launch.toml names.
    """
    from launch.cli.tidying import looked_at
    from launch.environment.audit import audit
    from launch.executors import choose
    from launch.ui import table

    with looked_at(host) as site:
        found = audit(choose(site.host, site.facts).name, site)
    if as_json:
        session.print_json({"host": host, **dataclasses.asdict(found)})
    elif found.drifts:
        rows = [(drift.package, drift.locked, drift.installed, drift.why) for drift in found.drifts]
        table(("package", "lock", "installed", ""), rows)
    told = f"{len(found.drifts)} of them are not as" if found.drifts else "all as"
    session.terminal.say(f"{host}: {found.packages} packages in {found.where}, {told} {found.lock} says")
    if found.drifts:
        session.terminal.say(f"  remedy: {found.remedy}")
    return int(Exit.HOST_NOT_READY if found.drifts else Exit.OK)


@env.command("list")
@HOST
@session.json_option
def list_(host: str, as_json: bool) -> int:
    """Show environments, code and pieces of shipments on HOST, their sizes and who needs them."""
    from launch.cli import tidying
    from launch.runs import tidy

    return tidying.show(host, tidy.folders, as_json=as_json)


@env.command()
@HOST
@click.option("--yes", is_flag=True, help="Remove; without it nothing is changed.")
@session.json_option
def prune(host: str, yes: bool, as_json: bool) -> int:
    """Remove environments, code and pieces on HOST that neither this version nor an unfinished run needs."""
    from launch.cli import tidying
    from launch.runs import tidy

    return tidying.prune(host, tidy.folders, really=yes, as_json=as_json)
