"""`launch host forget`: an entry of launch.toml and the host's key go, unless a run is alive there."""

from __future__ import annotations

import click

from launch.errors import Exit, LaunchError
from launch.inventory import Host, Inventory


def refuse_while_alive(host: Host, inventory: Inventory) -> None:
    """Ask the host for its runs. One that cannot be asked is forgotten: it may be gone, and its key may have changed.

    Raises:
        LaunchError: REFUSED, naming the runs that are alive.
    """
    from launch.runs.observe import observe
    from launch.transport import connect

    try:
        with connect(host, inventory) as transport:
            runs = observe(transport)
    except LaunchError as error:
        click.echo(f"{host.name} could not be asked for its runs ({error.what})", err=True)
        return
    alive = [run for run in runs if not run.state.state.ended and run.handle]
    if alive:
        shown = ", ".join(f"{run.run_id} ({run.state.state})" for run in alive)
        raise LaunchError(
            f"{host.name} is not forgotten: {len(alive)} run(s) of yours are alive there",
            why=shown,
            remedy=f"launch stop {alive[0].run_id} and `launch sync-out --host {host.name}` first, or add --force",
            code=Exit.REFUSED,
        )


def drop_key(gone: Host, before: Inventory, after: Inventory) -> None:
    """Forget the key of an address that no host has any more."""
    from launch.transport import hostkeys

    if gone.ssh is None:
        return
    server = hostkeys.server_name(gone, before)
    if server not in {hostkeys.server_name(host, after) for host in after.hosts.values() if host.ssh}:
        hostkeys.forget(before.known_hosts, server)
