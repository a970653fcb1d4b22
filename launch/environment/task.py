"""What finding and bringing an environment needs to know."""

from __future__ import annotations

from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from launch.facts import HostFacts
from launch.inventory import Host, Inventory
from launch.transport import Transport
from launch.voice import Voice


@dataclass(frozen=True, kw_only=True)
class Here:
    """What the laptop has: the trainers' code, the folder with the locks, and where to keep what can be made again."""

    package: Path
    envs: Path
    cache: Path


@dataclass(frozen=True, kw_only=True)
class Site:
    """A host and this laptop. ``present`` are those of :func:`launch.environment.markers` that the host has."""

    here: Here
    transport: Transport
    laptop: Transport
    host: Host
    inventory: Inventory
    facts: HostFacts
    present: AbstractSet[str] = field(default=frozenset())

    @property
    def root(self) -> str:
        """The host's root, absolute."""
        return self.facts.root


class Task(Protocol):
    """One thing that the host lacks."""

    def do(self, transport: Transport, laptop: Transport, voice: Voice) -> object:
        """Bring it; on paper when the transports are dry."""
