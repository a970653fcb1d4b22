"""What the commands share: the inventory, the terminal, this laptop, a probed host."""

from __future__ import annotations

import getpass
import json
import os
import platform
from pathlib import Path
from typing import Any

import click

from launch import environment, flags, inventory, secrets
from launch.inventory import Host, Inventory
from launch.runs.start import Ends, Laptop, Request, code_version
from launch.transport import Transport
from launch.ui import Terminal, hide_secrets
from minimind.process import leave_no_core

terminal = Terminal()
json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON on stdout.")


def load() -> Inventory:
    """The inventory that the command line names; its secrets are hidden from here on."""
    root = click.get_current_context().find_root()
    asked = root.params.get("inventory")
    known = inventory.load(Path(asked) if asked else None, cwd=Path.cwd(), environ=os.environ)
    names = (secrets.WANDB, *(name for host in known.hosts.values() for name in host.secrets))
    configured = any(host.secrets for host in known.hosts.values())
    root.obj = secrets.gather(names, environ=os.environ, file=known.secrets_file, keyring=configured)
    if secrets.any_known():
        leave_no_core()
        hide_secrets()
    return known


def vault() -> secrets.Vault:
    """The secrets that :func:`load` found."""
    found = click.get_current_context().find_root().obj
    assert isinstance(found, secrets.Vault)
    return found


def request(host: Host, stage: str, words: tuple[str, ...], *, nproc: int | None, name: str | None) -> Request:
    """What to start, with the secrets that it is to have.

    Raises:
        LaunchError: INVALID when a secret that the inventory names was not found, or may not be used.
    """
    optional = (secrets.WANDB,) if flags.is_on(words, "use_wandb") else ()
    hand = vault().pick(host.secrets, optional=optional)
    return Request(stage=stage, flags=words, nproc=nproc, name=name, secrets=hand)


def laptop(home: Path) -> Laptop:
    """Who asks, and from where."""
    commit, dirty_hash = code_version(package(), os.environ)
    try:
        user = getpass.getuser()
    except (KeyError, OSError):
        user = str(os.getuid())
    owner = f"{user}@{platform.node()}"
    return Laptop(home=home, cwd=Path.cwd(), owner=owner, pid=os.getpid(), commit=commit, dirty_hash=dirty_hash)


def package() -> Path:
    """The folder of the trainers' code."""
    import minimind

    return Path(minimind.__file__).parent


def ends(transport: Transport, laptop: Transport, known: Inventory) -> Ends:
    """A host and this machine."""
    installed = Path(environment.__file__).parents[1] / "_envs"
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "minimind-launch"
    envs = installed if installed.is_dir() else package().parent / "envs"
    here = environment.Here(package=package(), envs=envs, cache=cache)
    return Ends(host=transport, laptop=laptop, inventory=known, here=here)


def print_json(value: Any) -> None:
    """One JSON document on stdout."""
    click.echo(json.dumps(value, ensure_ascii=False, indent=2, default=str))
