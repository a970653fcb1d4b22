"""Hosts that begin with a password: what they let one in by, and putting a key there, once."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from pathlib import Path

from launch.errors import Exit, LaunchError
from launch.inventory import Host, Inventory
from launch.secrets import Secret
from launch.transport.ssh import SshTransport, open_connection, trust_only
from launch.transport.trouble import explain

TRIES = 3
DEFAULT_KEYS = ("~/.ssh/id_ed25519.pub", "~/.ssh/id_ecdsa.pub", "~/.ssh/id_rsa.pub")
BY_PASSWORD = ("password", "keyboard-interactive")

INSTALL = r"""
umask 077
cd || exit 74
mkdir -p .ssh && touch .ssh/authorized_keys || exit 74
key=$(cat)
if ! grep -qxF -e "$key" .ssh/authorized_keys; then
  [ -z "$(tail -c 1 .ssh/authorized_keys)" ] || echo >>.ssh/authorized_keys || exit 74
  printf '%s\n' "$key" >>.ssh/authorized_keys || exit 74
fi
chmod go-w . && chmod 700 .ssh && chmod 600 .ssh/authorized_keys
"""
"""Appends a public key where it is not there yet, with the modes that sshd insists on."""


def ways_in(host: Host, inventory: Inventory) -> tuple[str, ...]:
    """What the server lets one in by, as it says when asked without any proof: ``publickey``, ``password`` and so on.

    Raises:
        LaunchError: UNREACHABLE when it cannot be reached or shows another key than the known one.
    """
    import paramiko

    connection = open_connection(host, inventory)
    trust_only(connection, inventory)
    connection.connect_kwargs = {"look_for_keys": False, "allow_agent": False, "banner_timeout": 10}
    try:
        with contextlib.suppress(paramiko.SSHException):
            connection.open()
        wire = connection.client.get_transport()
        if wire is None or not wire.initial_kex_done:
            connection.open()  # raises what was wrong
        wire.auth_none(connection.user)
        return ("none",)
    except paramiko.BadAuthenticationType as error:
        return tuple(error.allowed_types)
    except Exception as error:
        raise explain(error, host=host, connection=connection, inventory=inventory) from error
    finally:
        connection.client.close()


def public_key(host: Host) -> str:
    """The line to put into authorized_keys: of the host's identity_file, else of the first usual key that there is.

    Raises:
        LaunchError: INVALID when there is none.
    """
    if host.identity_file is not None:
        paths = [host.identity_file.with_name(host.identity_file.name + ".pub")]
        remedy = f"ssh-keygen -y -f {host.identity_file} >{paths[0]}"
    else:
        paths = [Path(path).expanduser() for path in DEFAULT_KEYS]
        remedy = "ssh-keygen -t ed25519"
    for path in paths:
        with contextlib.suppress(OSError, UnicodeDecodeError):
            if (line := path.read_text().strip()) and "\n" not in line:
                return line
    raise LaunchError(
        f"there is no public key to install on {host.name}",
        why=f"looked for {', '.join(map(str, paths))}",
        remedy=remedy,
        code=Exit.INVALID,
    )


def install_key(host: Host, inventory: Inventory, *, ask: Callable[[], Secret]) -> None:
    """Log in once by password, put the public key there, and see that it opens the door.

    Raises:
        LaunchError: UNREACHABLE when no password is right, or the key is not taken all the same.
    """
    import paramiko

    key = public_key(host)
    for left in reversed(range(TRIES)):
        try:
            transport = SshTransport(host, inventory, password=ask())
        except LaunchError as error:
            if not isinstance(error.__cause__, paramiko.AuthenticationException):
                raise
            if left:
                continue
            raise LaunchError(
                f"{host.name}: no password was right",
                why=f"{host.ssh} refused {TRIES}",
                remedy="copy it from the provider's console, then: launch host add "
                f"{host.name} --replace-key --install-key",
                code=Exit.UNREACHABLE,
            ) from error
        with transport:
            transport.run(["sh", "-c", INSTALL], stdin=key.encode() + b"\n")
        break
    SshTransport(host, inventory).close()
