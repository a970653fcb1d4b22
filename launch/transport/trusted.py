"""Reading our own known_hosts: every key in it is understood or the line is named; revoked keys are nobody's."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from launch.errors import printable
from launch.transport.trouble import unusable_known_hosts

REVOKED, AUTHORITY = "@revoked", "@cert-authority"


def load(client: Any, known_hosts: Path) -> None:
    """Let an SSH client know exactly the keys of the file; one that is marked ``@revoked`` counts for no server.

    Lines of certificate authorities are passed over: a host that shows a certificate must have a plain key here too.

    Raises:
        LaunchError: INVALID, naming the line, when one cannot be understood.
    """
    try:
        lines = known_hosts.read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        return
    except (OSError, UnicodeDecodeError) as error:
        raise unusable_known_hosts(known_hosts, error) from error
    entries, revoked = [], set()
    for number, line in enumerate(lines, 1):
        fields = line.split()
        if not fields or fields[0].startswith("#") or fields[0] == AUTHORITY:
            continue
        is_revoked = fields[0] == REVOKED
        entry = _entry(known_hosts, number, fields[1:] if is_revoked else fields)
        if entry is not None and is_revoked:
            revoked.add(entry.key.asbytes())
        elif entry is not None:
            entries.append(entry)
    known = client.get_host_keys()
    for entry in entries:
        for name in entry.hostnames:
            if entry.key.asbytes() not in revoked and entry.key.get_name() not in (known.lookup(name) or {}):
                known.add(name, entry.key.get_name(), entry.key)


def _entry(known_hosts: Path, number: int, fields: Sequence[str]) -> Any:
    """The entry; None for a type of key that we do not speak, and so can never be shown."""
    import paramiko.hostkeys

    try:
        names, kind, key = fields[:3]
        base64.b64decode(key, validate=True)
        return paramiko.hostkeys.HostKeyEntry.from_line(f"{names} {kind} {key}", number)
    except Exception as error:  # what paramiko raises for a blob that is no key differs with every fault
        shown = printable(" ".join(fields))
        raise unusable_known_hosts(
            known_hosts,
            f"line {number} is not `names type key`, alone or after {REVOKED}: {shown[:60]}{'…' if shown[60:] else ''}",
        ) from error
