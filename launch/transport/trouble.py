"""Why a connection could not be made, in words that say what to do next."""

from __future__ import annotations

import socket
from pathlib import Path
from typing import Any

from launch.errors import Exit, LaunchError
from launch.inventory import Host, Inventory


def explain(error: Exception, *, host: Host, connection: Any, inventory: Inventory) -> LaunchError:
    """Turn what fabric, paramiko or a socket raised while connecting into a paragraph."""
    import paramiko

    from launch.transport.ssh import UnknownHostKey

    where = f"{connection.host} port {connection.port}"
    again = f"launch host add {host.name} --replace-key"

    def trouble(what: str, why: str, remedy: str) -> LaunchError:
        return LaunchError(f"{host.name}: {what}", why=why, remedy=remedy, code=Exit.UNREACHABLE)

    wire = connection.client.get_transport()
    match error:
        case UnknownHostKey() if error.server not in (connection.host, f"[{connection.host}]:{connection.port}"):
            return trouble(
                f"the key of {error.server}, on the way there, is not known",
                f"{inventory.known_hosts} has no key of it; it shows {error.fingerprint}",
                f"make the jump a host of its own: launch host add NAME --ssh {error.server}",
            )
        case UnknownHostKey():
            return trouble(
                "the host's key is not known",
                f"{inventory.known_hosts} has no key of {error.server}, which shows {error.fingerprint}",
                f"compare that with what the host's owner says, then `{again} --fingerprint {error.fingerprint}`",
            )
        case paramiko.BadHostKeyException():
            return trouble(
                "the host's key has CHANGED: nothing was sent",
                f"{error.hostname} shows {error.key.fingerprint}, {inventory.known_hosts} says "
                f"{error.expected_key.fingerprint}: another machine answers there, or it was installed anew",
                f"only if you know that it was made anew: `{again}` (with --ssh ADDRESS if that is new too)",
            )
        case socket.gaierror():
            return trouble(
                f"the name {connection.host} cannot be resolved",
                error.strerror or str(error),
                f"correct hosts.{host.name}.ssh in {inventory.path}, or see whether this machine is online",
            )
        case ConnectionRefusedError() | paramiko.ssh_exception.NoValidConnectionsError():
            return trouble(
                f"nothing answers at {where}",
                "the connection was refused or no way leads there; the ssh port of a rented host changes when it is "
                "made anew",
                f"correct hosts.{host.name}.ssh in {inventory.path}",
            )
        case TimeoutError():
            return trouble(
                f"{where} does not answer",
                "no answer within 10 s: it is off, or a firewall drops the packets",
                f"start it, or correct hosts.{host.name}.ssh in {inventory.path}",
            )
    if isinstance(error, paramiko.AuthenticationException) or (wire is not None and wire.initial_kex_done):
        tried = (
            "none of this user's keys"
            if host.identity_file is None
            else f"neither {host.identity_file} nor another key"
        )
        tries = (
            "; or it hung up before the right one was tried: a server takes six tries (MaxAuthTries: Too many "
            "authentication failures), and an agent offers every key that it has"
        )
        return trouble(
            f"{connection.user} is not let in",
            f"{where} accepts {tried} ({error or 'it hung up'}){'' if host.identity_file else tries}",
            f"name the key: identity_file below [hosts.{host.name}]; or put it there: `{again} --install-key`",
        )
    if isinstance(error, paramiko.SSHException | EOFError):
        return trouble(
            f"{where} does not speak ssh",
            f"something answers there, but no ssh handshake came about ({error or type(error).__name__})",
            f"correct the port in hosts.{host.name}.ssh in {inventory.path}",
        )
    return trouble(
        f"{where} cannot be reached",
        str(error) or type(error).__name__,
        f"see whether `ssh {host.ssh}` works, and correct hosts.{host.name} in {inventory.path}",
    )


def unusable_known_hosts(known_hosts: Path, error: Exception | str) -> LaunchError:
    """Our list of host keys, missing permissions or no text."""
    return LaunchError(
        f"{known_hosts} cannot be used",
        why=str(error),
        remedy="correct it, or set known_hosts in launch.toml to another path",
        code=Exit.INVALID,
    )
