"""The command line of the OpenSSH client, for tools that bring their own protocol. Pure."""

from __future__ import annotations

from pathlib import Path

from launch.inventory import Host, Inventory, parse_ssh

KEEPALIVE_S = 15
CONNECT_TIMEOUT_S = 10


def command(host: Host, inventory: Inventory) -> list[str]:
    """``ssh`` with our known hosts only, no questions, keepalives, and the host's own identity, user and port."""
    address = parse_ssh(host.ssh or "")
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
    if host.identity_file is not None:
        argv += ["-o", "IdentitiesOnly=yes", "-i", str(host.identity_file)]
    if address.user is not None:
        argv += ["-l", address.user]
    if address.port is not None:
        argv += ["-p", str(address.port)]
    return argv


def destination(host: Host) -> str:
    """The name, alias or bare address."""
    return parse_ssh(host.ssh or "").name


def _file(path: Path) -> str:
    return '"' + str(path).replace("%", "%%") + '"'
