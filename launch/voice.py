"""How the verbs below the command line talk to the person: they are given a voice, and never print."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Protocol

PATIENCE_S = 5.0


class Voice(Protocol):
    """Says what happens; on stderr, and perhaps to nobody."""

    def say(self, text: str) -> None:
        """One line about what happens now."""

    def moving(self, label: str, total_bytes: int) -> AbstractContextManager[Callable[[int], None]]:
        """While bytes move: gives a function to call with each number of bytes that went."""


class Supposed:
    """The voice of a dry run: whatever is said was not done."""

    def __init__(self, voice: Voice) -> None:
        self._voice = voice

    def say(self, text: str) -> None:
        """One line about what would happen now."""
        self._voice.say(f"dry run, not done: {text}")

    def moving(self, label: str, total_bytes: int) -> AbstractContextManager[Callable[[int], None]]:
        """One line about bytes that would move."""
        self.say(f"{label} ({total_bytes} bytes)")
        return nullcontext(lambda _bytes: None)


@contextmanager
def waiting(voice: Voice, text: str, *, patience_s: float = PATIENCE_S) -> Iterator[None]:
    """Say once what is being waited for, if that takes longer than ``patience_s``."""
    timer = threading.Timer(patience_s, voice.say, (text,))
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
