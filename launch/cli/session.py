"""What the commands share: the inventory, the terminal, this laptop, a probed host."""

from __future__ import annotations

import dataclasses
import getpass
import json
import os
import platform
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import click

from launch import environment, flags, inventory, secrets
from launch.errors import Exit, LaunchError
from launch.inventory import LOCAL, Host, Inventory
from launch.runs.forecast import FlagCheck
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
    hosts = known.hosts.values()
    logins = [host.registry_secret for host in hosts if host.registry_secret]
    names = (secrets.WANDB, *logins, *(name for host in hosts for name in host.secrets))
    configured = bool(logins) or any(host.secrets for host in hosts)
    root.obj = secrets.gather(names, environ=os.environ, file=known.secrets_file, keyring=configured)
    if secrets.any_known():
        leave_no_core()
        hide_secrets()
    return dataclasses.replace(known, vault=root.obj)


def vault() -> secrets.Vault:
    """The secrets that :func:`load` found."""
    found: secrets.Vault = click.get_current_context().find_root().obj
    return found


def request(host: Host, stage: str, words: tuple[str, ...], *, nproc: int | None, name: str | None) -> Request:
    """What to start, with the secrets that it is to have.

    Raises:
        LaunchError: INVALID when a secret that the inventory names was not found, or may not be used.
    """
    optional = (secrets.WANDB,) if flags.is_on(words, "use_wandb") else ()
    hand = vault().pick(host.secrets, optional=optional)
    return Request(stage=stage, flags=words, nproc=nproc, name=name, secrets=hand)


def one_host(known: Inventory, name: str | None) -> Host:
    """The host of that name; without one the only host of launch.toml, else this machine."""
    if name is not None:
        return known.host(name)
    others = [host for host in known.hosts.values() if host.name != LOCAL]
    if len(others) > 1:
        raise LaunchError(
            "which host?",
            why=f"launch.toml has {', '.join(host.name for host in others)}",
            remedy="say --host NAME",
            code=Exit.USAGE,
        )
    return others[0] if others else known.host(LOCAL)


def laptop(home: Path) -> Laptop:
    """Who asks, and from where."""
    commit, dirty_hash = code_version(package(), os.environ)
    try:
        user = getpass.getuser()
    except (KeyError, OSError):
        user = str(os.getuid())
    owner = f"{user}@{platform.node()}"
    return Laptop(home=home, cwd=Path.cwd(), owner=owner, pid=os.getpid(), commit=commit, dirty_hash=dirty_hash)


def flag_check(stage: str, words: Sequence[str]) -> FlagCheck:
    """Begin to check a trainer's flags."""
    return FlagCheck(stage, words, package=package(), environ=os.environ)


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


def worst(codes: Iterable[Exit | int]) -> int:
    """The exit code of a command that asked several hosts: 0, or 4 before any other."""
    found = sorted(int(code) for code in codes)
    return int(Exit.UNREACHABLE) if int(Exit.UNREACHABLE) in found else next(iter(found), int(Exit.OK))


def print_json(value: Any) -> None:
    """One JSON document on stdout."""
    click.echo(json.dumps(value, ensure_ascii=False, indent=2, default=str))
