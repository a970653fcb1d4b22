"""A command that was started, here or far away: its three pipes and its end."""

from __future__ import annotations

import abc
import contextlib
import threading
import time
from collections.abc import Iterable, Iterator

STDERR_TAIL_BYTES = 1 << 14
POLL_S = 0.5
LINGER_S = 5.0


class Running(abc.ABC):
    """A started command. Stdin is fed and stderr drained by threads, so that no pipe can block another."""

    def __init__(self, stdin: Iterable[bytes]) -> None:
        self._tail = bytearray()
        self._feed_error: Exception | None = None
        self._threads = [
            threading.Thread(target=work, args=args, daemon=True)
            for work, args in ((self._feed, (stdin,)), (self._drain, ()))
        ]
        for thread in self._threads:
            thread.start()

    @abc.abstractmethod
    def recv(self, timeout_s: float) -> bytes | None:
        """Some stdout; empty at its end; None when there was none for ``timeout_s``."""

    @abc.abstractmethod
    def recv_stderr(self) -> bytes:
        """Some stderr, waiting for it; empty at its end."""

    @abc.abstractmethod
    def write(self, data: bytes) -> None:
        """All of this to stdin; OSError when the command closed it."""

    @abc.abstractmethod
    def end_input(self) -> None:
        """Close stdin."""

    @abc.abstractmethod
    def exit_code(self, timeout_s: float) -> int | None:
        """The exit code, 128 + n for signal n; None while it still runs. LaunchError when it can never be known."""

    @abc.abstractmethod
    def close(self) -> None:
        """Free everything; a local command that still runs is killed."""

    def _feed(self, stdin: Iterable[bytes]) -> None:
        source = iter(stdin)
        with contextlib.suppress(OSError, EOFError):  # it wants no more, or the link broke: its exit code tells
            while data := self._next(source):
                self.write(data)
        with contextlib.suppress(OSError):
            self.end_input()

    def _next(self, source: Iterator[bytes]) -> bytes | None:
        try:
            return next(source, None)
        except Exception as error:
            self._feed_error = error
            return None

    def _drain(self) -> None:
        with contextlib.suppress(OSError):
            while data := self.recv_stderr():
                self._tail = (self._tail + data)[-STDERR_TAIL_BYTES:]

    def chunks(self, deadline: float | None) -> Iterator[bytes]:
        """Stdout until its end, or until it was silent for LINGER_S after the command ended and left it to a child."""
        ended_at = None  # the exit code may overtake the last output by a moment: its arrival ends nothing by itself
        while True:
            data = self.recv(POLL_S)
            if data:
                yield data
                ended_at = None
            elif data is not None or (ended_at is not None and time.monotonic() - ended_at > LINGER_S):
                return
            elif ended_at is None and self.exit_code(0) is not None:
                ended_at = time.monotonic()
            if deadline is not None and time.monotonic() > deadline:
                raise TimeoutError

    def finish(self, deadline: float | None) -> tuple[int, bytes]:
        """Exit code and the end of stderr; raises what the source of stdin raised."""
        while (code := self.exit_code(POLL_S)) is None:
            if deadline is not None and time.monotonic() > deadline:
                raise TimeoutError
        self._threads[1].join(POLL_S)
        if self._feed_error is not None:
            raise self._feed_error
        return code, bytes(self._tail)
