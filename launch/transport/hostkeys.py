"""Host keys: asking a server for all of its keys, and our known_hosts file in OpenSSH's format."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import socket
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from launch.errors import Exit, LaunchError
from launch.inventory import Host, Inventory
from launch.transport.openssh import CONNECT_TIMEOUT_S
from launch.transport.ssh import open_connection, trust_only
from launch.transport.trouble import explain, unusable_known_hosts
from launch.transport.trusted import REVOKED
from minimind.rundir import publish

_KINDS = {
    "ssh-ed25519": ("ssh-ed25519",),
    "ecdsa": ("ecdsa-sha2-nistp256", "ecdsa-sha2-nistp384", "ecdsa-sha2-nistp521"),
    "ssh-rsa": ("rsa-sha2-512", "rsa-sha2-256"),
}


@dataclass(frozen=True, kw_only=True)
class HostKey:
    """One public key that a server shows. ``server`` is ``name`` or ``[name]:port`` as in known_hosts."""

    server: str
    kind: str
    blob: bytes

    @property
    def fingerprint(self) -> str:
        """``SHA256:…`` as ``ssh-keygen -l`` prints it."""
        return "SHA256:" + base64.b64encode(hashlib.sha256(self.blob).digest()).decode().rstrip("=")

    @property
    def line(self) -> str:
        """The key's line in known_hosts."""
        return f"{self.server} {self.kind} {base64.b64encode(self.blob).decode()}\n"


def server_name(host: Host, inventory: Inventory) -> str:
    """How known_hosts names the host, aliases of the ssh config resolved."""
    connection = open_connection(host, inventory)
    return connection.host if connection.port == 22 else f"[{connection.host}]:{connection.port}"


def scan(host: Host, inventory: Inventory) -> list[HostKey]:
    """Every key the server at the host's address shows; nothing is sent to it but the handshake.

    Raises:
        LaunchError: UNREACHABLE when none could be had.
    """
    connection = open_connection(host, inventory)
    server = server_name(host, inventory)
    trust_only(connection.gateway, inventory)
    keys = []
    try:
        for algorithms in _KINDS.values():
            with contextlib.suppress(_NotOffered):
                keys.append(_ask(connection, algorithms, server))
        if not keys:
            raise EOFError("it shows no key of a known kind")
    except Exception as error:
        raise explain(error, host=host, connection=connection, inventory=inventory) from error
    return keys


def matching(keys: list[HostKey], fingerprint: str, *, name: str) -> list[HostKey]:
    """Those of the keys that have the fingerprint; the others are not vouched for.

    Raises:
        LaunchError: UNREACHABLE when none has it.
    """
    found = [key for key in keys if key.fingerprint == fingerprint.rstrip("=")]
    if not found:
        raise LaunchError(
            f"{name} shows another key than {fingerprint}: nothing was written",
            why=f"{keys[0].server} shows {', '.join(f'{key.kind} {key.fingerprint}' for key in keys)}",
            remedy="check the address, and ask the host's owner for the fingerprint again",
            code=Exit.UNREACHABLE,
        )
    return found


def remember(known_hosts: Path, keys: Iterable[HostKey]) -> None:
    """Put the keys into the file, in place of any others of the same servers."""
    keys = list(keys)
    lines = _without(known_hosts, {key.server for key in keys})
    _write(known_hosts, [*lines, *(key.line for key in keys)])


def fingerprints(known_hosts: Path, server: str) -> tuple[str, ...]:
    """The fingerprints that the file has of a server."""
    return tuple(key.fingerprint for key in known(known_hosts, server))


def known(known_hosts: Path, server: str) -> tuple[HostKey, ...]:
    """The keys that the file has of a server, revoked ones left out."""
    found, revoked = [], set()
    for line in _lines(known_hosts):
        words = line.split()
        names, *rest = words[1:] if words[:1] == [REVOKED] else words or [""]
        with contextlib.suppress(ValueError, IndexError):
            key = HostKey(server=server, kind=rest[0], blob=base64.b64decode(rest[1]))
            if words[0] == REVOKED:
                revoked.add(key.blob)
            elif server in names.split(","):
                found.append(key)
    return tuple(key for key in found if key.blob not in revoked)


def forget(known_hosts: Path, server: str) -> bool:
    """Take every key of a server out of the file; tells whether there was one."""
    before = _lines(known_hosts)
    after = _without(known_hosts, {server})
    if after != before:
        _write(known_hosts, after)
    return after != before


class _NotOffered(Exception):
    pass


def _ask(connection: Any, algorithms: tuple[str, ...], server: str) -> HostKey:
    import paramiko

    if connection.gateway:
        sock = connection.open_gateway()
    else:
        sock = socket.create_connection((connection.host, connection.port), CONNECT_TIMEOUT_S)
    wire = paramiko.Transport(sock)
    try:
        wire.banner_timeout = CONNECT_TIMEOUT_S
        offered = wire.get_security_options()
        offered.key_types = tuple(name for name in algorithms if name in offered.key_types)
        wire.start_client(timeout=CONNECT_TIMEOUT_S)
        key = wire.get_remote_server_key()
        return HostKey(server=server, kind=key.get_name(), blob=key.asbytes())
    except paramiko.ssh_exception.IncompatiblePeer as error:
        raise _NotOffered from error
    finally:
        with contextlib.suppress(Exception):
            wire.close()


def _lines(known_hosts: Path) -> list[str]:
    try:
        return known_hosts.read_text(encoding="utf-8").splitlines(keepends=True)
    except FileNotFoundError:
        return []
    except (OSError, UnicodeDecodeError) as error:
        raise unusable_known_hosts(known_hosts, error) from error


def _without(known_hosts: Path, servers: set[str]) -> list[str]:
    """The file's lines less those names; a line that names other servers too keeps them."""
    kept = []
    for line in _lines(known_hosts):
        names, blank, rest = line.partition(" ")
        others = [name for name in names.split(",") if name not in servers]
        if others or not blank:
            kept.append(",".join(others) + blank + rest if blank else line)
    return kept


def _write(known_hosts: Path, lines: list[str]) -> None:
    text = "".join(line if line.endswith("\n") else line + "\n" for line in lines)
    try:
        known_hosts.parent.mkdir(parents=True, exist_ok=True)
        publish(known_hosts.resolve(), text.encode(), mode=0o644)
    except OSError as error:
        raise unusable_known_hosts(known_hosts, error) from error
