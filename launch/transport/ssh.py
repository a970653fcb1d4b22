"""A host behind ssh: one fabric connection that knows exactly the keys of our own known_hosts."""

from __future__ import annotations

import contextlib
import logging
import shlex
import socket
import threading
import time
from collections.abc import Iterable, Sequence
from typing import Any

from launch.errors import Exit, LaunchError
from launch.inventory import Host, Inventory, parse_ssh
from launch.secrets import Secret
from launch.transport import trusted
from launch.transport.openssh import CONNECT_TIMEOUT_S, KEEPALIVE_S
from launch.transport.running import Running
from launch.transport.shell import ShellTransport
from launch.transport.trouble import explain

SILENT_S = 3 * KEEPALIVE_S
WINDOW_BYTES = 16 << 20
MARK = b"\x01launch\x02"
WRAPPER = ("sh", "-c", 'LC_ALL=C; export LC_ALL; printf "\\001launch\\002"; "$@"; exit $?', "sh")
"""As shell.WRAPPER, and marks where output begins: what a login shell's start file prints comes before."""
NOISE_BYTES = 1 << 18


def open_connection(host: Host, inventory: Inventory) -> Any:
    """A fabric Connection for the host, not yet opened: aliases, ports and jumps of the ssh config are resolved.

    Raises:
        LaunchError: INVALID when the ssh config cannot be read.
    """
    import fabric

    logging.getLogger("paramiko").addHandler(logging.NullHandler())
    logging.getLogger("paramiko").propagate = False
    address = parse_ssh(host.ssh or "")
    try:
        config = fabric.Config(
            lazy=True, runtime_ssh_path=None if inventory.ssh_config is None else str(inventory.ssh_config)
        )
        config.load_ssh_config()
        connection = fabric.Connection(
            address.name,
            user=address.user,
            port=address.port,
            config=config,
            connect_timeout=CONNECT_TIMEOUT_S,
            connect_kwargs={
                "banner_timeout": CONNECT_TIMEOUT_S,
                "auth_timeout": 2 * CONNECT_TIMEOUT_S,
                **({"key_filename": [str(host.identity_file)]} if host.identity_file else {}),
            },
        )
    except Exception as error:
        raise LaunchError(
            f"{host.name}: the ssh config cannot be used",
            why=str(error),
            remedy=f"correct {inventory.ssh_config or '~/.ssh/config'}",
            code=Exit.INVALID,
        ) from error
    return connection


def trust_only(connection: Any, inventory: Inventory) -> None:
    """Replace fabric's policy of accepting any key, for the connection and every jump before it.

    Raises:
        LaunchError: INVALID when our known hosts cannot be read.
    """
    import paramiko

    class Refuse(paramiko.MissingHostKeyPolicy):
        def missing_host_key(self, client: paramiko.SSHClient, hostname: str, key: paramiko.PKey) -> None:
            raise UnknownHostKey(hostname, key.fingerprint)

    while connection is not None and not isinstance(connection, str):
        connection.client.set_missing_host_key_policy(Refuse())
        trusted.load(connection.client, inventory.known_hosts)
        connection = connection.gateway


class UnknownHostKey(Exception):
    """The server's key is in no list of ours."""

    def __init__(self, server: str, fingerprint: str) -> None:
        super().__init__(server, fingerprint)
        self.server, self.fingerprint = server, fingerprint


class SshTransport(ShellTransport):
    """Commands over one connection, each on its own channel and without a terminal."""

    def __init__(self, host: Host, inventory: Inventory, *, password: Secret | None = None) -> None:
        self.host = host
        self._connection = open_connection(host, inventory)
        if password is not None:
            self._connection.connect_kwargs |= {"password": password.reveal(), "allow_agent": False}
        trust_only(self._connection, inventory)
        try:
            self._connection.open()
        except Exception as error:
            trouble = explain(error, host=host, connection=self._connection, inventory=inventory)
            self._close_all()
            raise trouble from error
        self._wire = self._connection.transport
        with contextlib.suppress(AttributeError, OSError):  # a jump or proxy is no socket
            self._wire.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)  # else 40 ms a message
        self._answered_at = time.monotonic()
        self._stop = threading.Event()
        threading.Thread(target=self._keep_alive, daemon=True).start()

    def start(self, argv: Sequence[str], stdin: Iterable[bytes]) -> Running:
        """Start a command with LC_ALL=C."""
        line = shlex.join([*WRAPPER, *argv])
        try:
            channel = self._wire.open_session(window_size=WINDOW_BYTES, timeout=SILENT_S)
            channel.exec_command(line.encode("utf-8", "surrogateescape"))
        except Exception as error:
            raise self._lost() from error
        return _SshRunning(self, channel, stdin)

    def close(self) -> None:
        """Close the connection and every jump."""
        self._stop.set()
        self._close_all()

    def check(self) -> None:
        """Raise when the connection is gone or has been silent through three keepalives."""
        if not self._wire.is_active() or time.monotonic() - self._answered_at > SILENT_S:
            self.close()
            raise self._lost()

    def heard(self) -> None:
        """Something came from the host."""
        self._answered_at = time.monotonic()

    def _keep_alive(self) -> None:
        while not self._stop.wait(KEEPALIVE_S) and self._wire.is_active():
            with contextlib.suppress(Exception):
                self._wire.global_request("keepalive@openssh.com", wait=True)
                if self._wire.is_active():
                    self.heard()

    def _close_all(self) -> None:
        connection = self._connection
        while connection is not None and not isinstance(connection, str):
            with contextlib.suppress(Exception):
                connection.client.close()
            connection = connection.gateway

    def _lost(self) -> LaunchError:
        return LaunchError(
            f"the connection to {self.host.name} broke",
            why=f"{self.host.ssh} closed it, or no longer answers",
            remedy="run the same command again; what runs on the host goes on",
            code=Exit.UNREACHABLE,
        )


class _SshRunning(Running):
    def __init__(self, transport: SshTransport, channel: Any, stdin: Iterable[bytes]) -> None:
        self._transport, self._channel = transport, channel
        self._before_mark: bytes | None = b""
        channel.settimeout(0.5)
        super().__init__(stdin)

    def recv(self, timeout_s: float) -> bytes | None:
        try:
            data: bytes = self._channel.recv(1 << 18)
        except TimeoutError:
            self._transport.check()
            return None
        self._transport.heard()
        return data if self._before_mark is None else self._marked(data)

    def _marked(self, data: bytes) -> bytes | None:
        """What stands behind the mark; all of it where no mark comes: then the command was never reached."""
        self._before_mark = (self._before_mark or b"") + data
        noise, mark, rest = self._before_mark.partition(MARK)
        if not mark and data and len(noise) < NOISE_BYTES:
            return None
        self._before_mark = None
        return (rest or None) if mark else noise

    def recv_stderr(self) -> bytes:
        while True:
            with contextlib.suppress(TimeoutError):
                return bytes(self._channel.recv_stderr(1 << 14))

    def write(self, data: bytes) -> None:
        view = memoryview(data)
        while view:
            with contextlib.suppress(TimeoutError):
                view = view[self._channel.send(view) :]

    def end_input(self) -> None:
        with contextlib.suppress(socket.error, EOFError):
            self._channel.shutdown_write()

    def exit_code(self, timeout_s: float) -> int | None:
        if not self._channel.status_event.wait(timeout_s):
            self._transport.check()
            return None
        if self._channel.exit_status < 0:
            raise self._transport._lost()
        return int(self._channel.exit_status)

    def close(self) -> None:
        self._channel.close()
