"""`launch release-check` and `launch release`: what would be lost with a host; giving it back when nothing is."""

from __future__ import annotations

import dataclasses
from datetime import UTC, datetime
from pathlib import Path

import click

from launch.cli import session
from launch.errors import Exit, LaunchError, printable
from launch.inventory import LOCAL, Host, Inventory
from launch.release import Findings, check, give_back
from launch.transport import connect

SHOWN = 10
no_weights_option = click.option(
    "--without-weights", is_flag=True, help="It is known that HOST has no weights: all of its runs failed."
)


@click.command()
@click.argument("host")
@click.option("--to", "folder", type=click.Path(path_type=Path), help="Where the copies are.  [default: home]")
@no_weights_option
@session.json_option
def release_check(host: str, folder: Path | None, without_weights: bool, as_json: bool) -> int:
    """Tell whether everything on HOST is at home, hashed on both sides now, and usable; exit 9 with the list if not."""
    known = session.load()
    findings = _check(known, known.host(host), folder, without_weights=without_weights)
    if as_json:
        session.print_json(findings.to_dict())
    _tell(findings)
    findings.refuse()
    session.terminal.say(f"{findings.host} may be released: {findings.files} files, {findings.bytes} bytes are here")
    return 0


@click.command()
@click.argument("host")
@click.option("--to", "folder", type=click.Path(path_type=Path), help="Where the copies are.  [default: home]")
@no_weights_option
@click.option("--dry-run", is_flag=True, help="Check, and only show the command.")
@session.json_option
def release(host: str, folder: Path | None, without_weights: bool, dry_run: bool, as_json: bool) -> int:
    """Give HOST back with its release_command, if release-check finds nothing that would be lost."""
    known = session.load()
    chosen = known.host(host)
    if chosen.name == LOCAL:
        raise click.UsageError("local is this machine: there is nothing to give back")
    findings = _check(known, chosen, folder, without_weights=without_weights)
    if dry_run and as_json:
        session.print_json({**findings.to_dict(), "release_command": chosen.release_command})
    _tell(findings)
    findings.refuse()
    if dry_run:
        session.terminal.say(f"would run: {chosen.release_command or 'nothing: there is no release_command'}")
        return 0
    try:
        receipt = give_back(chosen, findings, home=known.home, now=lambda: datetime.now(UTC))
    except KeyboardInterrupt:
        raise LaunchError(
            f"interrupted while the release_command of {host} ran: the host may be gone, or its clock still runs",
            why="how far the command came is not known here, and no receipt was written",
            remedy="look in the provider's console; while the host is there, run the same again",
            code=Exit.INTERRUPTED,
        ) from None
    spent = "" if receipt.spent_at_least is None else f", at least {receipt.spent_at_least} {receipt.currency} spent"
    session.terminal.say(f"{host} was released at {receipt.released_at}{spent}; next: launch host forget {host}")
    if as_json:
        session.print_json(dataclasses.asdict(receipt))
    return 0


def _check(known: Inventory, host: Host, folder: Path | None, *, without_weights: bool) -> Findings:
    with connect(host, known) as transport:
        home = (Path.cwd() / folder) if folder else known.home
        return check(transport, known, folder=home, voice=session.terminal, without_weights=without_weights)


def _tell(findings: Findings) -> None:
    say = session.terminal.say
    if findings.elsewhere:
        say(f"besides out/ and runs/ of {findings.root}, and not looked after by launch; gone if that disk is wiped:")
    for path, length_bytes in findings.elsewhere[:SHOWN]:
        size = "not measured" if length_bytes is None else f"{length_bytes / 1e9:9.3f} GB"
        say(f"  {size}  {printable(path)}")
    if more := len(findings.elsewhere[SHOWN:]):
        say(f"  and {more} smaller ones")
