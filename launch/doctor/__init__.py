"""Is a host fit to train? One remote call, then pure judging; ``deep`` also computes and writes there."""

from __future__ import annotations

import contextlib
import re
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from launch import facts
from launch.doctor import disks, driver, gpus, probe, system
from launch.doctor.check import Check, Verdict, unfit
from launch.doctor.probe import Answers, Target
from launch.errors import Exit, LaunchError
from launch.executors import choose
from launch.inventory import LOCAL, Host, Inventory
from launch.transport import Transport, address

__all__ = ["Check", "Report", "Target", "Verdict", "built_for", "examine", "targets"]


@dataclass(frozen=True, kw_only=True)
class Report:
    """What was found about one host; ``error`` is set when it could not be asked."""

    host: str
    checks: tuple[Check, ...] = ()
    facts: facts.HostFacts | None = None
    present: frozenset[str] = frozenset()
    error: LaunchError | None = field(default=None, compare=False)

    @property
    def verdict(self) -> Verdict | None:
        """The worst of its lines; None when it could not be asked."""
        return None if self.error else Verdict.worst(check.verdict for check in self.checks)


def targets(host: Host, inventory: Inventory) -> list[Target]:
    """The other hosts whose ssh port this one may want to reach; those behind a jump are left out."""
    found = []
    for other in inventory.hosts.values():
        if host.ssh is not None and other.ssh is not None and other.name != host.name:
            with contextlib.suppress(LaunchError):
                name, port, jumps = address(other, inventory)
                if not jumps:
                    found.append(Target(name=other.name, address=name, port=port))
    return found


def built_for(lock: Path) -> tuple[int, int] | None:
    """The CUDA version of a lock's packages; None when it has none."""
    try:
        match = re.search(r"^nvidia-cuda-runtime(?:-cu\d+)?==(\d+)\.(\d+)", lock.read_text(), re.MULTILINE)
    except OSError:
        return None
    return (int(match[1]), int(match[2])) if match else None


def examine(
    transport: Transport,
    *,
    cuda: tuple[int, int] | None,
    others: Sequence[Target],
    paths: Sequence[str] = (),
    image: str = "",
    labels: str = "",
) -> Report:
    """Ask the host once and judge what it tells. ``cuda`` is what a virtual environment is built for.

    ``image`` is what containers there would be made of, ``labels`` what this machine's says of CUDA and driver: it is
    brought to a host that has none. ``paths`` are looked for in the same call (:attr:`Report.present`).

    Raises:
        LaunchError: UNREACHABLE when the connection breaks, HOST_NOT_READY when its shell is none.
    """
    host = transport.host
    text, clock = _ask(transport, facts.probe(host.root, host.python, paths, more=probe.more(others, image=image)))
    try:
        found = facts.parse(text)
    except ValueError as error:
        raise LaunchError(
            f"{host.name} could not be looked at",
            why=str(error),
            remedy=f"log in by hand and see whether `sh` works there: ssh {host.ssh or host.name}",
            code=Exit.HOST_NOT_READY,
        ) from error
    told = probe.parse(text)
    checks = judge(told, found, host, clock=clock, cuda=cuda, others=others, labels=labels)
    present = frozenset(facts.parse_paths(text, paths))
    return Report(host=host.name, checks=tuple(checks), facts=found, present=present)


def judge(
    told: Answers,
    found: facts.HostFacts,
    host: Host,
    *,
    clock: system.Clock,
    cuda: tuple[int, int] | None,
    others: Sequence[Target],
    labels: str = "",
) -> list[Check]:
    """Every line about a host, from what it told. Pure."""
    try:
        executor, unusable = choose(host, found).name, None
    except LaunchError as error:
        executor = host.executor
        unusable = unfit("executor", error.what, error.remedy)
    is_local = host.name == LOCAL
    rented = bool(host.price_per_hour or host.release_command) or (found.in_container and not is_local)
    ranks = host.gpus or max(1, len(found.gpus))
    built = driver.Built(what="the environment", cuda=cuda) if cuda else None
    if executor == "docker":
        there, here = told.one("image"), driver.read_labels("the image here", labels)
        built = driver.read_labels("the image there", there) or here or built
    elif host.python:  # used as it is, built for whatever it was built for
        built = None
    checks = [
        *system.judge(told, found, host, clock=clock, targets=others, executor=executor, ranks=ranks),
        *gpus.judge(told, expected=host.gpus, built=built, is_local=is_local),
        *disks.judge(told, found, host=host.name, rented=rented, virtual=system.is_virtual(told)),
    ]
    if unusable and not any(check.name == "docker" and check.verdict is Verdict.UNFIT for check in checks):
        checks.append(unusable)
    order = ("ssh", "clock", "machine", "memory", "gpus", "driver", "capability", "gpu", "topology", "docker")
    return sorted(checks, key=lambda check: _place(check.name, order))


def _place(name: str, order: Sequence[str]) -> int:
    first = name.split()[0]
    return order.index(first) if first in order else len(order)


def _ask(transport: Transport, argv: Sequence[str]) -> tuple[str, system.Clock]:
    asked_at = time.time()
    heard_at: float | None = None
    data = bytearray()
    for chunk in transport.stream(argv):
        data += chunk
        if b"clock=" in data:  # the probe's first word
            heard_at = heard_at or time.time()
    return data.decode("utf-8", "replace"), system.Clock(asked_at=asked_at, heard_at=heard_at or time.time())
