"""The only room that speaks ssh: commands and files on a host, on this machine, or on paper.

fabric and paramiko are imported when the first connection is made, never by importing this package.
"""

from __future__ import annotations

from launch.inventory import Host, Inventory
from launch.transport.base import Result, Transport, last_lines, shown
from launch.transport.dry import DryStep, DryTransport
from launch.transport.shell import host_path

__all__ = [
    "DryStep",
    "DryTransport",
    "Result",
    "Transport",
    "address",
    "connect",
    "host_path",
    "last_lines",
    "shown",
    "ssh_command",
    "ssh_destination",
]


def connect(host: Host, inventory: Inventory) -> Transport:
    """Open a transport to a host.

    Raises:
        LaunchError: UNREACHABLE when the host, its key or our key is not right.
    """
    if host.ssh is None:
        from launch.transport.local import LocalTransport

        return LocalTransport(host)
    from launch.transport.ssh import SshTransport

    return SshTransport(host, inventory)


def ssh_command(host: Host, inventory: Inventory) -> list[str]:
    """The OpenSSH client, without destination, that trusts exactly what :func:`connect` trusts (for ``rsync -e``)."""
    from launch.transport.openssh import command

    return command(host, inventory)


def address(host: Host, inventory: Inventory) -> tuple[str, int, bool]:
    """Where the host's ssh port is, aliases of the ssh config resolved, and whether the way leads through another host.

    Raises:
        LaunchError: INVALID when the ssh config cannot be read.
    """
    from launch.transport.ssh import open_connection

    connection = open_connection(host, inventory)
    return connection.host, connection.port, connection.gateway is not None


def ssh_destination(host: Host) -> str:
    """The destination to give to :func:`ssh_command`: a name, an alias or an address."""
    from launch.transport.openssh import destination

    return destination(host)
