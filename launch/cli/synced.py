"""What a sync-out did, in words."""

from __future__ import annotations

from typing import TYPE_CHECKING

from launch.cli import session

if TYPE_CHECKING:
    from launch import sync


def tell(report: sync.Report, copied: sync.Mirrored | None, dry_run: bool) -> None:
    """Say it on stderr."""
    say = session.terminal.say
    for odd in report.left_alone:
        say(f"left on {report.host}: {odd.name}: {odd.why}")
    if not report.weights:
        say(f"there are NO WEIGHTS on {report.host}: logs, metrics and the like are all that it has")
    moved = f"{len(report.fetched)} of {len(report.files)} files, {report.fetched_bytes} bytes"
    if dry_run:
        say(f"would copy {moved} from {report.host} to {report.folder}; nothing was changed")
    else:
        say(f"copied {moved}; all of them verified. Check again: {report.check_command}")
    if copied is not None:
        sent = f"{len(copied.sent)} files, {copied.sent_bytes} bytes"
        say(
            f"would send {sent} to {copied.remote}"
            if dry_run
            else f"sent {sent} to {copied.remote}; all is verified there"
        )
