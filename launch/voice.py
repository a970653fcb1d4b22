"""How the verbs below the command line talk to the person: they are given a voice, and never print."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Protocol


class Voice(Protocol):
    """Says what happens; on stderr, and perhaps to nobody."""

    def say(self, text: str) -> None:
        """One line about what happens now."""

    def moving(self, label: str, total_bytes: int) -> AbstractContextManager[Callable[[int], None]]:
        """While bytes move: gives a function to call with each number of bytes that went."""
