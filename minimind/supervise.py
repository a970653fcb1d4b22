"""torchrun's parent on the host: takes the run's lock, beats, keeps the logs, and says how it ended.

``python -m minimind.supervise --run_dir DIR`` runs in the foreground (a container's entry point); ``--detach`` leaves
it running in a session of its own and prints handle.json. Any other first argument is a command to run instead, so that
the image also serves ``docker run IMAGE python -m minimind --help``. Standard library only.
"""

from __future__ import annotations

import argparse
import contextlib
import getpass
import importlib.metadata
import json
import os
import platform
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from minimind.durable import AlreadyHeld, hold, publish, to_json, tree_hash
from minimind.keys import receive
from minimind.process import (
    PR_SET_CHILD_SUBREAPER,
    PR_SET_PDEATHSIG,
    boot_id,
    cores,
    detach,
    oom_kills,
    prctl,
    start_time,
)
from minimind.pulse import last_metrics_step
from minimind.rundir import BEAT_INTERVAL_S, Reason, RunDir, RunError, RunSpec
from minimind.verdict import broken, judge, paragraph
from minimind.warden import Warden, end_all_below

EXIT_FAILED = 6
EXIT_INVALID = 3
EXIT_REFUSED = 9
GRACE_S = 300.0
"""How long a stopped run may take to save before torchrun is signalled."""
KILL_AFTER_S = 20.0
POLL_S = 0.1
RESERVE, RESERVE_BYTES = ".exit.json.tmp", 16 << 10
"""Room for exit.json, taken at the start: how a run ended can be written down on a disk that it has filled."""


def describe_environment(spec: RunSpec, *, nproc: int, attempt: int) -> dict[str, Any]:
    """What env.json says: read from package metadata and nvidia-smi, without importing torch."""
    try:
        torch = importlib.metadata.version("torch")
    except importlib.metadata.PackageNotFoundError as error:
        raise RunError(
            "this environment has no torch",
            why=f"{sys.executable} cannot find the package",
            remedy="let `launch run` make the environment, or point the host's `python` at one that has torch",
            reason=Reason.ENV_MISMATCH,
        ) from error
    gpus: list[str] = []
    if shutil.which("nvidia-smi"):
        query = ["nvidia-smi", "--query-gpu=name,memory.total,driver_version", "--format=csv,noheader"]
        with contextlib.suppress(OSError, subprocess.TimeoutExpired):  # a driver that hangs; the ranks will tell
            said = subprocess.run(query, capture_output=True, text=True, check=False, timeout=30)
            gpus = said.stdout.splitlines() if said.returncode == 0 else []
    return {
        "attempt": attempt,
        "nproc": nproc,
        "python": platform.python_version(),
        "torch": torch,
        "cuda": torch.partition("+cu")[2] or None,
        "gpus": gpus,
        "image_digest": spec.image_digest,
        "lock_hash": spec.lock_hash,
        "commit": spec.commit,
        "code_hash": tree_hash(Path(__file__).parent),
        "platform": platform.platform(),
        "cpus": cores(),
    }


class HeldError(RunError):
    """The run has a live supervisor or trainer already."""


class Supervisor:
    """One attempt of one run, from the lock to exit.json."""

    def __init__(self, run_dir: Path, *, nproc: int | None = None, secrets: Mapping[str, str] | None = None) -> None:
        self.secrets = dict(secrets or {})
        self.dir = RunDir(run_dir.resolve())
        try:
            self.spec = RunSpec.from_json(self.dir.spec.read_bytes())
        except FileNotFoundError as error:
            raise RunError(
                f"{run_dir} is no run directory",
                why="it has no spec.json",
                remedy="start runs with `launch run`, or train by hand with `python -m minimind <stage>`",
            ) from error
        self.nproc = nproc or self.spec.nproc
        self.identity = {"pid": os.getpid(), "start_time": start_time(os.getpid()), "boot_id": boot_id()}
        owner = {**self.identity, "user": getpass.getuser(), "host": platform.node(), "since": time.time()}
        try:
            self.lock = hold(self.dir.lock, owner)
        except AlreadyHeld as held:
            raise HeldError(
                f"{self.dir.root.name} is already being trained",
                why=f"its lock is held by {json.dumps(held.owner)}",
                remedy="follow that one with `launch logs -f`, or stop it first with `launch stop`",
            ) from None
        self.attempt = self.dir.last_attempt() + 1
        self.folder = self.dir.attempt(self.attempt)
        self.folder.mkdir(mode=0o700, parents=True)
        try:
            publish(self.folder / RESERVE, bytes(RESERVE_BYTES))
        except OSError:  # an attempt without a word would be called lost
            self.folder.rmdir()
            raise
        self.handle = {"kind": "process", **self.identity, "attempt": self.attempt, "nproc": self.nproc}
        self.stop_asked_at: float | None = None
        self.gave_up = self.quit = False
        self.warden = Warden(self.folder, self.nproc)
        self.copied_bytes = 0

    def run(self) -> int:
        """Train once and write exit.json; returns the exit code (0 for done and stopped)."""
        started_at, kills_before = time.time(), oom_kills()
        metrics_before = self.dir.metrics.stat().st_size if self.dir.metrics.exists() else 0
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, self._on_signal)
        signal.signal(signal.SIGQUIT, self._on_quit)
        prctl(PR_SET_CHILD_SUBREAPER, 1)
        self._beat(training=False)
        try:
            publish(self.dir.env, to_json(describe_environment(self.spec, nproc=self.nproc, attempt=self.attempt)))
            code = self._train(metrics_before)
            killed = oom_kills() > kills_before
            said = judge(self.folder, self.dir.export, code, killed_for_memory=killed, gave_up=self.gave_up)
            if self.warden.verdict and code != 0:
                said = {"code": code, **self.warden.verdict, "weights": []}
        except Exception as error:  # whatever it is, the run must not be left without an end
            said = broken(error, self.dir.root)
        self._beat(training=False)
        concluded = self.conclude({**said, "started_at": started_at})
        return 0 if concluded and not said["reason"] else EXIT_FAILED

    def conclude(self, said: dict[str, Any]) -> bool:
        """Write exit.json, over the reserve where the disk has no room; False when even that fails."""
        last_step = last_metrics_step(self.dir.metrics)
        said = {"attempt": self.attempt, **said, "last_step": last_step, "ended_at": time.time()}
        target, reserve = self.folder / "exit.json", self.folder / RESERVE
        try:
            try:
                publish(target, to_json(said))
                reserve.unlink(missing_ok=True)
            except OSError:
                with open(reserve, "r+b") as file:  # its blocks are there already
                    file.write(to_json(said)[:RESERVE_BYTES])
                    file.truncate()
                    os.fsync(file.fileno())
                reserve.replace(target)
        except OSError as error:
            print(f"error: {target} cannot be written: {error}\nit would say: {said}", file=sys.stderr, flush=True)
            return False
        return True

    def _on_signal(self, number: int, frame: object) -> None:
        self.stop_asked_at = self.stop_asked_at or time.monotonic()
        with contextlib.suppress(OSError):  # a disk without room for a name: the grace period ends it
            self.dir.stop.touch(mode=0o600)

    def _on_quit(self, number: int, frame: object) -> None:
        self.quit = True

    def _train(self, metrics_before: int) -> int:
        ours = {"MINIMIND_ATTEMPT": str(self.attempt), "MINIMIND_RUN_DIR": str(self.dir.root)}
        environment = {**os.environ, **self.secrets, **ours, "PYTHONUNBUFFERED": "1"}
        environment.setdefault("OMP_NUM_THREADS", str(max(1, cores() // self.nproc)))
        if Path(
            "/sys/class/net/lo"
        ).exists():  # one host: no rank needs another interface, and a container may have none
            environment.setdefault("GLOO_SOCKET_IFNAME", "lo")
        log = os.open(self.folder / "log.txt", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        child = subprocess.Popen(
            [sys.executable, "-m", "minimind.agent", str(self.nproc)],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            env=environment,
            start_new_session=True,
            pass_fds=(self.lock,),
            preexec_fn=lambda: prctl(PR_SET_PDEATHSIG, signal.SIGTERM),
        )
        next_beat, training = time.monotonic() + BEAT_INTERVAL_S, False
        try:
            while (code := child.poll()) is None:
                time.sleep(POLL_S)
                self._copy_rank0(log)
                self._enforce_stop(child)
                self.warden.look()
                if self.quit and not self.warden.verdict:
                    self.warden.stop_at_once(self.dir, lambda: last_metrics_step(self.dir.metrics))
                grew = self.dir.metrics.exists() and self.dir.metrics.stat().st_size > metrics_before
                if time.monotonic() >= next_beat or grew is not training:
                    training, next_beat = grew, time.monotonic() + BEAT_INTERVAL_S
                    self._beat(training=training)
            self._copy_rank0(log)
        finally:
            os.close(log)
            end_all_below()  # a worker that outlived torchrun must not write behind our back
        return code

    def _copy_rank0(self, log: int) -> None:
        # rank 0 writes its own file; log.txt is that and torchrun's words, in the order in which they came
        with contextlib.suppress(OSError), open(self.folder / "log.rank0.txt", "rb") as file:  # full: copied later
            file.seek(self.copied_bytes)
            while chunk := file.read(1 << 20):
                self.copied_bytes += os.write(log, chunk)
                file.seek(self.copied_bytes)

    def _enforce_stop(self, child: subprocess.Popen[bytes]) -> None:
        if self.stop_asked_at is None and not self.dir.stop.exists():
            return
        now = time.monotonic()
        self.stop_asked_at = self.stop_asked_at or now
        waited_s = now - self.stop_asked_at
        if waited_s > GRACE_S:
            self.gave_up = True
            with contextlib.suppress(ProcessLookupError):
                os.killpg(child.pid, signal.SIGKILL if waited_s > GRACE_S + KILL_AFTER_S else signal.SIGTERM)

    def _beat(self, *, training: bool) -> None:
        beat = {
            "time": time.time(),
            **self.identity,
            "attempt": self.attempt,
            "last_step": last_metrics_step(self.dir.metrics),
            "training": training,
        }
        with contextlib.suppress(OSError):  # a full disk must not end a training that may still save
            publish(self.dir.beat, to_json(beat))


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; see the module's first lines."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    if arguments and not arguments[0].startswith("-"):
        os.execvp(arguments[0], arguments)  # noqa: S606
    parser = argparse.ArgumentParser(prog="python -m minimind.supervise", description="Run one attempt of a run.")
    parser.add_argument("--run_dir", type=Path, required=True, help="the run directory, with its spec.json")
    parser.add_argument("--nproc", type=int, help="ranks, instead of the number in spec.json")
    parser.add_argument("--secrets", type=Path, help="a JSON file of variables for the ranks; removed once it is read")
    parser.add_argument("--detach", action="store_true", help="go on in the background and print handle.json")
    options = parser.parse_args(arguments)
    if not options.detach:
        return _attempt(options, announce=None)
    return detach(lambda announce: _attempt(options, announce=announce))


def _attempt(options: argparse.Namespace, *, announce: Callable[[bytes], None] | None) -> int:
    try:
        supervisor = Supervisor(options.run_dir, nproc=options.nproc, secrets=receive(options.secrets))
    except HeldError as error:
        print(error, file=sys.stderr)
        return EXIT_REFUSED
    except RunError as error:
        print(error, file=sys.stderr)
        return EXIT_INVALID
    except OSError as error:
        print(paragraph(error, options.run_dir), file=sys.stderr)
        return EXIT_FAILED
    if announce:
        try:
            publish(supervisor.dir.handle, to_json(supervisor.handle))
        except OSError as error:
            supervisor.conclude(broken(error, supervisor.dir.root))
            print(paragraph(error, options.run_dir), file=sys.stderr)
            return EXIT_FAILED
        announce(to_json(supervisor.handle))
    return supervisor.run()


if __name__ == "__main__":
    sys.exit(main())
