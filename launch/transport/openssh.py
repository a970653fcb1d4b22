"""The command line of the OpenSSH client, for tools that bring their own protocol. Pure."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from launch.inventory import Host, Inventory, parse_ssh

KEEPALIVE_S = 15
CONNECT_TIMEOUT_S = 10


@dataclass(frozen=True, kw_only=True)
class Hop:
    """A machine on the way; ``name`` may be an alias of the ssh config."""

    name: str
    user: str
    port: int


def command(host: Host, inventory: Inventory, hops: Sequence[Hop] = ()) -> list[str]:
    """``ssh`` with our known hosts only, no questions, keepalives, and the host's own identity, user and port.

    ``hops`` are the machines on the way, the first one first. OpenSSH starts a client of its own for a ProxyJump, which
    would ask the user's known hosts: so each hop is a command with our options.
    """
    address = parse_ssh(host.ssh or "")
    argv = _trusting(inventory, hops)
    if host.identity_file is not None:
        argv += ["-o", "IdentitiesOnly=yes", "-i", str(host.identity_file)]
    if address.user is not None:
        argv += ["-l", address.user]
    if address.port is not None:
        argv += ["-p", str(address.port)]
    return argv


def _trusting(inventory: Inventory, hops: Sequence[Hop]) -> list[str]:
    argv = ["ssh"]
    if inventory.ssh_config is not None:
        argv += ["-F", str(inventory.ssh_config)]
    options = {
        "UserKnownHostsFile": _file(inventory.known_hosts),
        "GlobalKnownHostsFile": "/dev/null",
        "StrictHostKeyChecking": "yes",
        "UpdateHostKeys": "no",
        "BatchMode": "yes",
        "ConnectTimeout": str(CONNECT_TIMEOUT_S),
        "ServerAliveInterval": str(KEEPALIVE_S),
        "ServerAliveCountMax": "3",
        "ClearAllForwardings": "yes",
        "LogLevel": "ERROR",
    }
    for key, value in options.items():
        argv += ["-o", f"{key}={value}"]
    if hops:
        last = hops[-1]
        before = [*_trusting(inventory, hops[:-1]), "-l", last.user, "-p", str(last.port)]
        command = shlex.join(before).replace("%", "%%")  # ssh expands the tokens of a ProxyCommand
        argv += ["-o", f"ProxyCommand={command} -W '[%h]:%p' {shlex.quote(last.name)}"]
    return argv


def between(folder: str, *, user: str, address: str, port: int, alias: str) -> list[str]:
    """For use *on* a host: its way to another one with the key ``folder/key``, which is good for that alone.

    It knows the other by ``folder/known_hosts``, under ``alias``, and neither an agent nor the user's own files.
    """
    options = {
        "UserKnownHostsFile": _file(f"{folder}/known_hosts"),
        "GlobalKnownHostsFile": "/dev/null",
        "HostKeyAlias": alias,
        "StrictHostKeyChecking": "yes",
        "UpdateHostKeys": "no",
        "IdentitiesOnly": "yes",
        "IdentityAgent": "none",
        "BatchMode": "yes",
        "ConnectTimeout": str(CONNECT_TIMEOUT_S),
        "ServerAliveInterval": str(KEEPALIVE_S),
        "ServerAliveCountMax": "3",
        "LogLevel": "ERROR",
    }
    argv = ["ssh", "-F", "/dev/null", "-T", "-i", f"{folder}/key".replace("%", "%%")]
    for key, value in options.items():
        argv += ["-o", f"{key}={value}"]
    return [*argv, "-l", user, "-p", str(port), "--", address]


def destination(host: Host) -> str:
    """The name, alias or bare address."""
    return parse_ssh(host.ssh or "").name


def _file(path: Path | str) -> str:
    return '"' + str(path).replace("%", "%%") + '"'
