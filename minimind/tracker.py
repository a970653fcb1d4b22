"""Weights & Biases in a process of its own, so that whatever happens to it costs a training nothing but a curve.

The trainer writes a JSON line to a pipe that never blocks it; ``python -m minimind.tracker`` reads the lines and tells
wandb. That process may be missing wandb, wait for a dead network, fail or be killed: it is said once, and steps go on.
Only the end waits for it, at most :data:`FINISH_S`.
"""

from __future__ import annotations

import collections
import contextlib
import json
import netrc
import os
import signal
import subprocess
import sys
import threading
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Mapping
from pathlib import Path
from typing import Any

FINISH_S = 30.0
"""How long the end of a training waits for wandb to send what it has, and then ends it."""
REACH_S = 10.0
INIT_S = 60.0
KEPT_LINES = 200_000
SERVER = "https://api.wandb.ai"


class Tracker:
    """The trainer's side. No method raises, and none but ``close`` waits."""

    def __init__(self, *, project: str, name: str, run_id: str, config: Mapping[str, Any], folder: Path) -> None:
        self.lost = 0
        first = {"project": project, "name": name, "id": run_id, "config": config, "dir": str(folder)}
        self.process: subprocess.Popen[bytes] | None = None
        theirs, self.pipe = os.pipe()
        os.set_blocking(self.pipe, False)
        try:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "minimind.tracker", str(os.getpid())],
                stdin=theirs,
                env={**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)},
                start_new_session=True,  # a Ctrl-C is the trainer's; and all of it can be ended at once
            )
            self._send(first)
        except OSError as error:
            self._gone(f"{type(error).__name__}: {error}")
        finally:
            os.close(theirs)

    def log(self, line: Mapping[str, Any]) -> None:
        """Pass on one step; it is dropped and counted where wandb's side does not read."""
        self._send({"log": line})

    def close(self, *, failed: bool) -> None:
        """Let wandb finish, for at most :data:`FINISH_S`."""
        if self.process is None:
            return
        self._send({"end": int(failed)})
        process, self.process = self.process, None
        if process is None:  # it was gone when it was told of the end
            return
        self._hang_up()
        try:
            process.wait(FINISH_S + 1)  # it gives up by itself before
        except subprocess.TimeoutExpired:
            with contextlib.suppress(OSError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            print(f"warning: wandb did not end within {FINISH_S:.0f} s and was killed", flush=True)
        if self.lost:
            print(f"warning: wandb took too long to read; it lacks {self.lost:,} steps", flush=True)

    def _send(self, message: Mapping[str, Any]) -> None:
        if self.process is None:
            return
        data = (json.dumps(message) + "\n").encode()
        try:
            sent = os.write(self.pipe, data)  # a pipe takes a line of up to 4096 bytes whole or not at all
            if sent < len(data):
                self._gone("it took a part of a line only")
        except BlockingIOError:
            self.lost += 1
        except OSError:
            self._gone("its process has ended")

    def _gone(self, why: str) -> None:
        process, self.process = self.process, None
        print(f"warning: not tracking with wandb any more: {why}; training goes on", flush=True)
        self._hang_up()
        if process is not None:
            process.poll()

    def _hang_up(self) -> None:
        with contextlib.suppress(OSError):
            os.close(self.pipe)


def _say(text: str) -> None:
    print(f"wandb: {text}", flush=True)


def _mode(environ: Mapping[str, str]) -> str:
    """What WANDB_MODE says, else online where there is a key; offline where the server does not answer."""
    server = environ.get("WANDB_BASE_URL", SERVER)
    keyed = bool(environ.get("WANDB_API_KEY"))
    with contextlib.suppress(OSError, netrc.NetrcParseError):
        keyed = (
            keyed or netrc.netrc(environ.get("NETRC")).authenticators(urllib.parse.urlsplit(server).netloc) is not None
        )
    mode = environ.get("WANDB_MODE") or ("online" if keyed else "offline")
    if mode == "online" and not _answers(server):
        _say(f"{server} does not answer within {REACH_S:.0f} s: recording offline, `wandb sync` sends it later")
        return "offline"
    return mode


def _answers(server: str) -> bool:
    """Whether anything speaks HTTP there, through the proxies of the environment."""
    found = []

    def ask() -> None:
        try:
            with urllib.request.urlopen(server, timeout=REACH_S):  # noqa: S310 - wandb's own setting
                found.append(True)
        except urllib.error.HTTPError:
            found.append(True)
        except (OSError, ValueError):
            pass

    asking = threading.Thread(target=ask, daemon=True)  # a name server that hangs knows no timeout
    asking.start()
    asking.join(REACH_S)
    return bool(found)


def _give_up() -> None:
    _say(f"did not finish within {FINISH_S:.0f} s and is ended; `wandb sync` sends what was recorded")
    os._exit(1)


class _Inbox:
    """Reads the trainer's lines at once, whatever wandb is doing."""

    def __init__(self) -> None:
        self.lines: collections.deque[dict[str, Any]] = collections.deque(maxlen=KEPT_LINES)
        self.more = threading.Condition()
        self.ended: int | None = None
        self.at_end = False
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        for raw in sys.stdin.buffer:
            with contextlib.suppress(ValueError), self.more:
                message = json.loads(raw)
                self.ended = message.get("end", self.ended)
                self.lines.append(message)
                self.more.notify()
        threading.Timer(FINISH_S, _give_up).start()  # nothing of a trainer that has ended stays behind for long
        with self.more:
            self.at_end = True
            self.more.notify()

    def next(self) -> dict[str, Any] | None:
        """The next message, None after the last."""
        with self.more:
            while not self.lines and not self.at_end:
                self.more.wait()
            return self.lines.popleft() if self.lines else None


def main(trainer_pid: int) -> int:
    """Wandb's side; returns the exit code."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    inbox = _Inbox()
    first = inbox.next()
    if first is None:
        return 1
    try:
        import wandb
    except ImportError as error:
        _say(f"not tracking: {error}; pip install wandb, or leave --use_wandb away")
        return 1

    def begin(mode: str) -> Any:
        # resume: the same id goes on in the same run; x_stats_pid: the memory shown is the trainer's
        settings = wandb.Settings(init_timeout=INIT_S, x_stats_pid=trainer_pid, console="off")
        given = {key: first[key] for key in ("project", "name", "id", "config", "dir")}
        return wandb.init(**given, resume="allow", mode=mode, settings=settings)

    try:
        mode = _mode(os.environ)
        try:
            run = begin(mode)
        except Exception as error:
            if mode != "online":
                raise
            _say(f"online it fails ({type(error).__name__}: {error}): recording offline, `wandb sync` sends it later")
            run = begin("offline")
        run.define_metric(
            "*", step_metric="step"
        )  # steps that a resume repeats are not refused, as wandb's own would be
        while (message := inbox.next()) is not None:
            if "log" in message:
                run.log(message["log"])
        run.finish(exit_code=1 if inbox.ended is None else inbox.ended)
    except Exception as error:  # whatever a tracker does must not cost a training
        _say(f"stopped: {type(error).__name__}: {error}; training goes on")
        return 1
    return 0


if __name__ == "__main__":
    code = main(int(sys.argv[1]))
    sys.stdout.flush()
    os._exit(code)  # wandb's exit hooks wait for a service that may be gone
