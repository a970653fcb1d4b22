"""`launch sync-in`: data, weights and the tokenizer to a host."""

from __future__ import annotations

import click

from launch.cli import session


@click.command()
@click.option("--host", help="To this host.  [default: the only one of launch.toml, or local]")
@click.option("--overwrite", is_flag=True, help="Replace other files of the same names on the host.")
@click.option("--dry-run", is_flag=True, help="Only show what would be copied.")
@session.json_option
def sync_in(host: str | None, overwrite: bool, dry_run: bool, as_json: bool) -> int:
    """Send dataset/, out/ and the tokenizer of the home folder to a host that lacks them, verified there."""
    from launch import sync
    from launch.transport import DryTransport, connect

    known = session.load()
    with connect(session.one_host(known, host), known) as transport:
        chosen = DryTransport(transport, []) if dry_run else transport
        pushes = sync.sync_in(chosen, known.home, voice=session.terminal, overwrite=overwrite)
    sent = [push for push in pushes if push.state != "same"]
    if as_json:
        session.print_json([push.to_dict() for push in pushes])
    total = f"{len(sent)} of {len(pushes)} files, {sum(push.length_bytes for push in sent)} bytes"
    session.terminal.say(f"{'would copy' if dry_run else 'copied'} {total} to {transport.host.name}")
    return 0
