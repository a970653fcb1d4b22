"""What finding and bringing an environment needs to know."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from launch.facts import HostFacts
from launch.inventory import Host, Inventory
from launch.transport import Transport
from launch.voice import Voice


@dataclass(frozen=True, kw_only=True)
class Site:
    """A host and this laptop. ``package`` is the folder of the trainers' code, ``envs`` the one with the locks."""

    transport: Transport
    laptop: Transport
    host: Host
    inventory: Inventory
    facts: HostFacts
    package: Path
    envs: Path
    cache: Path

    @property
    def root(self) -> str:
        """The host's root, absolute."""
        return self.facts.root


class Task(Protocol):
    """One thing that the host lacks."""

    def do(self, transport: Transport, laptop: Transport, voice: Voice) -> None:
        """Bring it; on paper when the transports are dry."""
