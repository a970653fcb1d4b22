"""What `launch host add` asks a person: is this the right machine, and what is its password."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import click

from launch.errors import Exit, LaunchError
from launch.inventory import Host, Inventory
from launch.secrets import Secret
from minimind.process import leave_no_core

if TYPE_CHECKING:
    from launch.transport.hostkeys import HostKey

COMPARE = """\
Compare with what the machine says about itself. In the provider's console open its web terminal, which does not come
over this connection, and type there:
  for key in /etc/ssh/ssh_host_*_key.pub; do ssh-keygen -l -f "$key"; done"""


def confirm(name: str, keys: list[HostKey], *, known: tuple[str, ...]) -> None:
    """Show the keys and ask whether they are right; ``known`` are the fingerprints of the keys that they replace.

    Raises:
        LaunchError: USAGE when there is no terminal to ask on.
    """
    shown = "\n".join(f"  {key.kind} {key.fingerprint}" for key in keys)
    if not sys.stdin.isatty():
        raise LaunchError(
            f"whether {name} is the right machine cannot be asked here",
            why=f"there is no terminal, and {keys[0].server} shows\n{shown}",
            remedy="compare with what the host's owner says, then add --fingerprint SHA256:…",
            code=Exit.USAGE,
        )
    click.echo(f"{keys[0].server} shows\n{shown}", err=True)
    if known:
        same = any(key.fingerprint in known for key in keys)
        click.echo("known until now\n" + "".join(f"  {fingerprint}\n" for fingerprint in known), err=True, nl=False)
        click.echo(
            "One of them is the same." if same else "None of them is the same: it was made anew, or is another.",
            err=True,
        )
    click.echo(COMPARE, err=True)
    click.confirm("Does the host's owner say the same?", abort=True, err=True)


def let_in(host: Host, inventory: Inventory, *, wanted: bool) -> None:
    """Install the public key when that was asked for, or offer it to a person whom the host does not let in.

    Raises:
        LaunchError: USAGE when a password is needed and there is no terminal.
    """
    from launch.transport import connect, password

    if wanted:
        ways = password.ways_in(host, inventory)
        if not set(ways) & set(password.BY_PASSWORD):
            raise LaunchError(
                f"{host.name} lets nobody in by password",
                why=f"it offers {', '.join(ways)} only",
                remedy="put your public key there in the provider's console",
                code=Exit.UNREACHABLE,
            )
    elif not sys.stdin.isatty():
        return
    else:
        try:
            connect(host, inventory).close()
            return
        except LaunchError as error:
            if not set(password.ways_in(host, inventory)) & set(password.BY_PASSWORD):
                click.echo(f"note: {error.what}; {error.remedy}", err=True)
                return
        click.echo(f"{host.name} takes none of your keys yet, but a password.", err=True)
        if not click.confirm("Put your public key there, with its password?", err=True):
            return
    password.install_key(host, inventory, ask=lambda: _password(host))
    click.echo(f"your public key is on {host.name}; its password is needed no more", err=True)


def _password(host: Host) -> Secret:
    if not sys.stdin.isatty():
        raise LaunchError(
            f"the password of {host.name} cannot be asked here",
            why="there is no terminal, and a password is never taken from arguments or variables",
            remedy="run the same command in a terminal, or put your public key there in the provider's console",
            code=Exit.USAGE,
        )
    leave_no_core()
    return Secret("password", click.prompt(f"Password of {host.ssh}", hide_input=True, err=True), source="terminal")
