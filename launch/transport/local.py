"""The machine that launch itself runs on, as a host."""

from __future__ import annotations

import os
import select
import signal
import subprocess
from collections.abc import Iterable, Sequence
from typing import IO, cast

from launch.inventory import Host
from launch.transport.running import Running
from launch.transport.shell import WRAPPER, ShellTransport


class LocalTransport(ShellTransport):
    """Commands as processes of this machine, each in a session of its own: Ctrl-C here does not reach them."""

    def __init__(self, host: Host) -> None:
        self.host = host

    def start(self, argv: Sequence[str], stdin: Iterable[bytes]) -> Running:
        """Start a command with LC_ALL=C."""
        return _LocalRunning(argv, stdin)

    def close(self) -> None:
        """Nothing is held."""


class _LocalRunning(Running):
    def __init__(self, argv: Sequence[str], stdin: Iterable[bytes]) -> None:
        self._process = subprocess.Popen(
            [*WRAPPER, *argv],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            bufsize=0,
            start_new_session=True,
        )
        self._in, self._out, self._err = (
            cast(IO[bytes], pipe) for pipe in (self._process.stdin, self._process.stdout, self._process.stderr)
        )
        super().__init__(stdin)

    def recv(self, timeout_s: float) -> bytes | None:
        ready, _, _ = select.select([self._out], [], [], timeout_s)
        return os.read(self._out.fileno(), 1 << 18) if ready else None

    def recv_stderr(self) -> bytes:
        return os.read(self._err.fileno(), 1 << 14)

    def write(self, data: bytes) -> None:
        view = memoryview(data)
        while view:
            view = view[os.write(self._in.fileno(), view) :]

    def end_input(self) -> None:
        self._in.close()

    def exit_code(self, timeout_s: float) -> int | None:
        try:
            code = self._process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            return None
        return code if code >= 0 else 128 - code

    def close(self) -> None:
        if self._process.poll() is None:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
        self._out.close()
