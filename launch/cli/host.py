"""`launch host add` and `launch host forget`: entries of launch.toml together with the host's key."""

from __future__ import annotations

import os
import re
from pathlib import Path

import click

from launch import inventory as inventories
from launch.cli import host_keys
from launch.cli.host_forget import drop_key, refuse_while_alive
from launch.errors import Exit, LaunchError
from launch.inventory import Inventory, edit
from minimind.rundir import publish


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
@click.option("--ssh", metavar="ADDRESS", help="user@name:port, or an alias of the ssh config.")
@click.option("--fingerprint", metavar="SHA256:…", help="The key that the host must show; without it you are asked.")
@click.option("--replace-key", is_flag=True, help="NAME was made anew: trust its new key (and take a new --ssh).")
@click.option("--install-key", is_flag=True, help="Put your public key there; its password is asked, once.")
@click.option("--root", help="Folder on the host for runs, weights and data.  [default: ~/minimind]")
@click.option("--executor", type=click.Choice(["auto", "docker", "venv", "slurm"]), help="How runs are started.")
@click.option("--gpus", type=click.IntRange(0), help="How many GPUs to use.")
@click.option("--price-per-hour", type=click.FloatRange(0), help="What an hour costs.")
@click.option("--currency", help="Three letters, such as CNY.")
@click.option("--release-command", help="What gives the host back.")
@click.option("--identity-file", help="The private key that lets you in.")
@click.option("--python", help="A ready-made interpreter on the host.")
@click.option("--image", help="The image that the docker executor uses.")
def add(name: str, fingerprint: str | None, replace_key: bool, install_key: bool, **values: object) -> None:
    """Add a host NAME, after checking the key that it shows."""
    from launch.transport import hostkeys

    if not inventories.HOST_NAME.fullmatch(name) or name == inventories.LOCAL:
        raise click.UsageError("NAME has letters, digits, - and _ only, and is not `local`, which is always there")
    if fingerprint is not None and not re.fullmatch(r"SHA256:[A-Za-z0-9+/]{43}=?", fingerprint):
        raise click.UsageError("--fingerprint must look like SHA256:… with 43 characters, as ssh-keygen -l prints it")
    if not values["ssh"] and not replace_key:
        raise click.UsageError("Missing option '--ssh': where is the host?")
    path, text = _open()
    before = _parse(text, path)
    if name in before.hosts and not replace_key:
        raise LaunchError(
            f"there is already a host {name}",
            why=f"{path} has a table [hosts.{name}]",
            remedy=f"launch host forget {name}; or, when it was made anew: launch host add {name} --replace-key",
            code=Exit.REFUSED,
        )
    old = before.host(name) if replace_key else None
    text = edit.change_host(text, name, values) if replace_key else edit.add_host(text, name, values)
    inventory = _parse(text, path)
    new = inventory.host(name)
    keys = hostkeys.scan(new, inventory)
    if fingerprint is None:
        known = hostkeys.fingerprints(before.known_hosts, hostkeys.server_name(old, before)) if old else ()
        host_keys.confirm(name, keys, known=known)
    else:
        keys = hostkeys.matching(keys, fingerprint, name=name)
    hostkeys.remember(inventory.known_hosts, keys)
    _write(path, text)
    if old is not None:
        drop_key(old, before, inventory)
    click.echo(f"{name} is in {path}, its key in {inventory.known_hosts}", err=True)
    host_keys.let_in(new, inventory, wanted=install_key)
    click.echo(f"next: launch doctor {name}", err=True)


@host.command()
@click.argument("name")
@click.option("--force", is_flag=True, help="Also while a run is alive there; the run goes on.")
def forget(name: str, force: bool) -> None:
    """Take host NAME and its keys out of launch.toml and launch.known_hosts; touches nothing on the host."""
    path, text = _open()
    inventory = _parse(text, path)
    gone = inventory.host(name)
    text = edit.remove_host(text, name)
    if not force and gone.ssh:
        refuse_while_alive(gone, inventory)
    _write(path, text)
    drop_key(gone, inventory, _parse(text, path))
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
