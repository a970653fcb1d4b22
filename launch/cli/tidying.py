"""What `launch env` and `launch image` share: a host looked at, a list, and removing what nobody needs."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from launch.cli import session
from launch.environment.task import Site
from launch.runs import tidy
from launch.transport import connect
from launch.ui import table

Survey = Callable[[Site], list[tidy.Item]]


@contextmanager
def looked_at(name: str) -> Iterator[Site]:
    """A host, probed."""
    known = session.load()
    with connect(known.host(name), known) as there, connect(known.host("local"), known) as here:
        yield session.ends(there, here, known).visit(())[0]


def show(host: str, survey: Survey, *, as_json: bool) -> int:
    """List what there is."""
    with looked_at(host) as site:
        items = survey(site)
    _print(items, as_json=as_json)
    return 0


def prune(host: str, survey: Survey, *, really: bool, as_json: bool) -> int:
    """Remove what nobody needs, or only say what that is."""
    with looked_at(host) as site:
        items = [item for item in survey(site) if not item.kept_for]
        stayed = tidy.remove(site, items) if really else []
    gone = [item for item in items if item not in stayed]
    _print(gone, as_json=as_json)
    total = f"{len(gone)} things, {sum(item.bytes for item in gone) / 1e9:.2f} GB on {host}"
    say = session.terminal.say
    for item in stayed:
        say(f"left: {item.name} is in use")
    say(f"removed {total}" if really else f"would remove {total}; nothing was changed. To remove: add --yes")
    return 0


def _print(items: list[tidy.Item], *, as_json: bool) -> None:
    if as_json:
        session.print_json([dataclasses.asdict(item) for item in items])
        return
    rows = []
    for item in items:
        size, state = f"{item.bytes / 1e6:.1f} MB", "" if item.whole else "half-made"
        rows.append((item.kind, item.name, size, state, ", ".join(item.kept_for)))
    table(("kind", "name", "size", "", "needed by"), rows)
