"""`launch host add` and `launch host forget`: entries of launch.toml together with the host's key."""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from launch import inventory as inventories
from launch.errors import Exit, LaunchError
from launch.inventory import Inventory, edit
from minimind.rundir import publish

if TYPE_CHECKING:
    from launch.transport.hostkeys import HostKey


@click.group()
def host() -> None:
    """Add or forget a host of launch.toml."""


def _open() -> tuple[Path, str]:
    """The launch.toml in use, or the one to make, and its text."""
    asked = click.get_current_context().find_root().params.get("inventory")
    found = inventories.find(Path(asked) if asked else None, cwd=Path.cwd(), environ=os.environ)
    path = found or Path.cwd() / inventories.FILE
    return path, inventories.read_text(path) if path.exists() else edit.HEADING


def _parse(text: str, path: Path) -> Inventory:
    return inventories.parse(text, path=path, home=path.parent, environ=os.environ)


@host.command()
@click.argument("name")
@click.option("--ssh", required=True, metavar="ADDRESS", help="user@name:port, or an alias of the ssh config.")
@click.option("--fingerprint", metavar="SHA256:…", help="The key that the host must show; without it you are asked.")
@click.option("--root", help="Folder on the host for runs, weights and data.  [default: ~/minimind]")
@click.option("--executor", type=click.Choice(["auto", "docker", "venv", "slurm"]), help="How runs are started.")
@click.option("--gpus", type=click.IntRange(0), help="How many GPUs to use.")
@click.option("--price-per-hour", type=click.FloatRange(0), help="What an hour costs.")
@click.option("--currency", help="Three letters, such as CNY.")
@click.option("--release-command", help="What gives the host back.")
@click.option("--identity-file", help="The private key that lets you in.")
@click.option("--python", help="A ready-made interpreter on the host.")
@click.option("--image", help="The image that the docker executor uses.")
def add(name: str, fingerprint: str | None, **values: object) -> None:
    """Add a host NAME, after checking the key that it shows."""
    from launch.transport import hostkeys

    if not inventories.HOST_NAME.fullmatch(name) or name == inventories.LOCAL:
        raise click.UsageError("NAME has letters, digits, - and _ only, and is not `local`, which is always there")
    if fingerprint is not None and not re.fullmatch(r"SHA256:[A-Za-z0-9+/]{43}=?", fingerprint):
        raise click.UsageError("--fingerprint must look like SHA256:… with 43 characters, as ssh-keygen -l prints it")
    path, text = _open()
    if name in _parse(text, path).hosts:
        raise LaunchError(
            f"there is already a host {name}",
            why=f"{path} has a table [hosts.{name}]",
            remedy=f"launch host forget {name}",
            code=Exit.REFUSED,
        )
    text = edit.add_host(text, name, values)
    inventory = _parse(text, path)
    keys = hostkeys.scan(inventory.host(name), inventory)
    keys = _ask(name, keys) if fingerprint is None else hostkeys.matching(keys, fingerprint, name=name)
    hostkeys.remember(inventory.known_hosts, keys)
    _write(path, text)
    click.echo(f"{name} is in {path}, its key in {inventory.known_hosts}\nnext: launch hosts", err=True)


def _ask(name: str, keys: list[HostKey]) -> list[HostKey]:
    shown = "\n".join(f"  {key.kind} {key.fingerprint}" for key in keys)
    if not sys.stdin.isatty():
        raise LaunchError(
            f"whether {name} is the right machine cannot be asked here",
            why=f"there is no terminal, and {keys[0].server} shows\n{shown}",
            remedy="compare with what the host's owner says, then add --fingerprint SHA256:…",
            code=Exit.USAGE,
        )
    click.echo(f"{keys[0].server} shows\n{shown}", err=True)
    click.confirm("Does the host's owner say the same?", abort=True, err=True)
    return keys


@host.command()
@click.argument("name")
def forget(name: str) -> None:
    """Take host NAME and its keys out of launch.toml and launch.known_hosts; touches nothing on the host."""
    from launch.transport import hostkeys

    path, text = _open()
    inventory = _parse(text, path)
    gone = inventory.host(name)
    text = edit.remove_host(text, name)
    others = {hostkeys.server_name(h, inventory) for h in inventory.hosts.values() if h.ssh and h != gone}
    _write(path, text)
    if gone.ssh and (server := hostkeys.server_name(gone, inventory)) not in others:
        hostkeys.forget(inventory.known_hosts, server)
    click.echo(f"{name} is no longer in {path}", err=True)


def _write(path: Path, text: str) -> None:
    try:
        publish(path.resolve(), text.encode(), mode=0o644)
    except OSError as error:
        raise LaunchError(
            f"{path} cannot be written",
            why=error.strerror or str(error),
            remedy="make it writable for this user",
            code=Exit.INVALID,
        ) from error
