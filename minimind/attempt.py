"""One training process's side of the run directory: its folder, its lock when started by hand, its last words."""

from __future__ import annotations

import contextlib
import os
import platform
import shutil
import sys
import threading
import time
import traceback
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from minimind.config import UsageError
from minimind.durable import (
    AlreadyHeld,
    hold,
    is_disk_full,
    is_gpu_memory_full,
    is_main_memory_full,
    publish,
    to_json,
    verified_weights,
)
from minimind.process import boot_id, kill_all, start_time
from minimind.pulse import Phase, Pulse, Watch, died, last_metrics_step
from minimind.rundir import BY_HAND, Reason, RunDir, RunError, RunSpec, new_run_id

WATCH_S = 1.0
BLAME_S = 3.0
"""How long a rank whose collective broke waits for word of the one that broke it."""


class PeerFailed(Exception):
    """Another rank has told what went wrong."""

    agreed = True


class Attempt:
    """Context of one rank in one attempt. Leaving it records how it went; rank 0 writes outcome.json as its last act.

    Under the supervisor the folder and the lock exist already. Started by hand, rank 0 makes them, with a spec.json
    that says so; the other ranks of a torchrun by hand learn the folder from rank 0 (:meth:`adopt`) and record nothing.
    """

    def __init__(
        self, stage: str, argv: list[str], *, run_dir: Path | None, save_dir: Path, hang_timeout_s: float = 0.0
    ) -> None:
        self.rank, self.size = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
        self.hang_timeout_s = hang_timeout_s
        self.pulse: Pulse | None = None
        self.over = threading.Event()
        self.supervised = "MINIMIND_ATTEMPT" in os.environ
        self.status, self.last_step = "error", 0
        self.agreed = False
        """Whether every rank ends for the same reason at the same place, so that none waits for another."""
        self.everyone = True
        """Whether an error is met by every rank, so that rank 0 tells it for all of them."""
        self.lock: int | None = None
        self.folder: Path | None = None
        name = new_run_id(stage, now_utc=f"{datetime.now(UTC):%Y%m%d-%H%M%S}")
        self.dir = RunDir((run_dir or save_dir.resolve().parent / "runs" / name).resolve())
        if self.supervised:
            self.folder = self.dir.attempt(int(os.environ["MINIMIND_ATTEMPT"]))
        elif self.rank == 0:
            self.folder = self._begin(stage, argv)
        self._begin_pulse()

    def adopt(self, root: str) -> None:
        """Take rank 0's run directory for this rank's, and watch the others where nobody else does."""
        self.dir = RunDir(root)
        number = self.dir.last_attempt()  # 0 where rank 0 is on another machine that shares no disk with this one
        if self.folder is None and number:
            self.folder = self.dir.attempt(number)
            self._begin_pulse()
        if not self.supervised and self.size > 1 and self.folder is not None:
            threading.Thread(target=self._watch, args=(Watch(self.folder, self.size),), daemon=True).start()

    def at(self, phase: Phase, *, step: int | None = None) -> None:
        """Say how far this rank is, for whoever watches."""
        if self.pulse:
            self.pulse.at(phase, step=step)

    def _begin_pulse(self) -> None:
        if self.folder is not None:
            path = self.folder / f"rank{self.rank}.beat"
            self.pulse = Pulse(path, rank=self.rank, hang_timeout_s=self.hang_timeout_s)
            self.at(Phase.JOIN)

    def _watch(self, watch: Watch) -> None:
        while not self.over.wait(WATCH_S):
            trouble = watch.look(WATCH_S)
            if trouble and not self.over.is_set():
                if not any((watch.folder / f"error.rank{rank}.json").exists() for rank in trouble.ranks):
                    self._record(trouble)
                    print(f"error: {trouble}", file=sys.stderr, flush=True)
                # a thread cannot interrupt a collective; the one that is stopped hears nothing but this
                kill_all(pid for pid in watch.pids(trouble.ranks) if pid != os.getpid())
                os._exit(6)

    def blame(self, error: Exception) -> Exception:
        """What an error in a collective really is: another rank's death, or what that rank has told itself."""
        if self.size == 1 or self.folder is None or isinstance(error, RunError | PeerFailed):
            return error
        watch, deadline = Watch(self.folder, self.size), time.monotonic() + BLAME_S
        while time.monotonic() < deadline:
            watch.look(0.1)
            others = [rank for rank in range(self.size) if rank != self.rank]
            if any((self.folder / f"error.rank{rank}.json").exists() for rank in others):
                return PeerFailed()
            if dead := [rank for rank in watch.dead(for_s=0.0) if rank != self.rank]:
                # under the supervisor torchrun's own record says by which signal
                return PeerFailed() if self.supervised else died(dead, watch.ranks[dead[0]].pid)
            time.sleep(0.1)
        return error

    def _begin(self, stage: str, argv: list[str]) -> Path:
        """Make the run directory; one that could not be used is not left behind."""
        new = not self.dir.root.exists()
        try:
            return self._take(stage, argv)
        except OSError as error:
            if new:
                shutil.rmtree(self.dir.root, ignore_errors=True)
                with contextlib.suppress(OSError):
                    self.dir.root.parent.rmdir()  # stays when it holds another run
            raise RunError(
                f"{self.dir.root} cannot be used as a run directory",
                why=str(error),
                remedy="free space there, or give another --run_dir"
                if is_disk_full(error)
                else "give a --run_dir (or a --save_dir, whose neighbour runs/ it is) in a folder that you can write",
                reason=Reason.DISK_FULL if is_disk_full(error) else Reason.TRAINER_ERROR,
            ) from error

    def _take(self, stage: str, argv: list[str]) -> Path:
        self.dir.root.mkdir(mode=0o700, parents=True, exist_ok=True)
        owner = {"pid": os.getpid(), "start_time": start_time(os.getpid()), "boot_id": boot_id()}
        try:
            self.lock = hold(self.dir.lock, {**owner, "host": platform.node(), "since": time.time()})
        except AlreadyHeld as held:
            raise RunError(
                f"{self.dir.root.name} is already being trained",
                why=f"its lock is held by process {held.owner.get('pid')} on {held.owner.get('host')}",
                remedy="wait for it, or give another --run_dir",
            ) from None
        self.dir.stop.unlink(missing_ok=True)
        number = self.dir.last_attempt() + 1
        self.dir.attempt(number).mkdir(mode=0o700, parents=True)
        if not self.dir.spec.exists():
            spec = RunSpec(
                run_id=self.dir.root.name,
                stage=stage,
                flags=argv,
                nproc=int(os.environ.get("WORLD_SIZE", "1")),
                executor=BY_HAND,
                created_at=f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%SZ}",
            )
            publish(self.dir.spec, spec.to_json(), mode=0o444)
        publish(self.dir.handle, to_json({"kind": "process", **owner, "attempt": number}))
        return self.dir.attempt(number)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self.over.set()
            self._record(error)
            if self.pulse:
                self.pulse.close()
        finally:
            if self.lock is not None:
                os.close(self.lock)

    def _record(self, error: BaseException | None) -> None:
        if error is None:
            if self.rank == 0:
                self._conclude({"status": self.status, "last_step": self.last_step})
            return
        if isinstance(error, KeyboardInterrupt):
            error = RunError(
                "interrupted before the first step",
                why="Ctrl-C, or a signal that means the same",
                remedy="start it again; nothing was trained",
                reason=Reason.SIGNAL,
            )
        if isinstance(error, PeerFailed) or not isinstance(error, Exception):
            return
        if isinstance(error, RunError):
            error.agreed = self.agreed
        said = self._explain(error)
        if self.folder is not None:
            publish(
                self.folder / f"error.rank{self.rank}.json", to_json({**said, "rank": self.rank, "time": time.time()})
            )
            outcome = {"status": "error", **said, "last_step": self.last_step}
            if self.rank == 0:
                self._conclude(outcome)
            elif self._alone_knows(error):
                self._say_end({**outcome, "last_step": last_metrics_step(self.dir.metrics)})  # what it wrote down

    def _alone_knows(self, error: Exception) -> bool:
        """Whether no supervisor and no rank 0 will say how it ended: it met nothing, or is the one that cannot."""
        told = self.folder is None or (self.folder / "exit.json").exists()
        return not self.supervised and not told and (not self.everyone or bool(getattr(error, "ranks", ())))

    def _conclude(self, outcome: dict[str, Any]) -> None:
        if self.folder is None:
            return
        publish(self.folder / "outcome.json", to_json(outcome))
        if not self.supervised:  # nobody else will say how it ended
            self._say_end(outcome)

    def _say_end(self, outcome: dict[str, Any]) -> None:
        if self.folder is not None:
            weights = verified_weights(self.dir.export) if self.status == "done" else []
            reason = outcome.get("reason") or (Reason.NO_WEIGHTS if self.status == "done" and not weights else None)
            told = {key: outcome[key] for key in ("what", "why", "remedy", "last_step") if key in outcome}
            code = 0 if reason is None else 6
            ended = {"code": code, "reason": reason, **told, "weights": weights, "ended_at": time.time()}
            publish(self.folder / "exit.json", to_json(ended))

    @staticmethod
    def _explain(error: Exception) -> dict[str, Any]:
        told = explain(error)
        return {"reason": told.reason, "what": told.what, "why": told.why, "remedy": told.remedy}


def record_early(error: RunError) -> None:
    """Under the supervisor, put down what went wrong before there was an attempt to hold it; all ranks see the same."""
    number, rank = os.environ.get("MINIMIND_ATTEMPT"), os.environ.get("RANK", "0")
    if number is not None:
        folder = RunDir(os.environ["MINIMIND_RUN_DIR"]).attempt(int(number))
        said = {"reason": error.reason, "what": error.what, "why": error.why, "remedy": error.remedy}
        publish(folder / f"error.rank{rank}.json", to_json({**said, "rank": int(rank), "time": time.time()}))
        error.agreed = True


def explain(error: Exception) -> RunError:
    """The paragraph for any exception: a RunError as it is, known conditions by name, the rest as our own fault."""
    if isinstance(error, RunError):
        return error
    if is_disk_full(error):
        return RunError(
            "the disk is full",
            why=str(error),
            remedy="free space or move root to a larger disk, then `launch resume`: the last checkpoint is whole",
            reason=Reason.DISK_FULL,
        )
    if is_main_memory_full(error):
        return RunError(
            "the machine's memory is full",
            why=str(error).partition("\n")[0] or "Python was given no more",
            remedy="set --max_tokens_per_batch, or halve --batch_size and double --accumulation_steps",
            reason=Reason.OOM_KILLED,
        )
    if is_gpu_memory_full(error):
        return RunError(
            "the GPU's memory is full",
            why=str(error).partition("\n")[0],
            remedy="halve --batch_size and double --accumulation_steps, or set --max_tokens_per_batch",
            reason=Reason.OUT_OF_GPU_MEMORY,
        )
    return RunError(
        f"the trainer broke: {type(error).__name__}: {error}",
        why="this is not a condition it knows; the traceback is in the log",
        remedy="read the log's last lines; if it is no fault of the machine, report it with them",
    )


def report(error: Exception) -> int:
    """Say a failure on stderr and return the exit code; a traceback only for what we did not foresee."""
    if isinstance(error, PeerFailed):
        return 6
    told = explain(error)
    if told is not error and told.reason is Reason.TRAINER_ERROR:
        traceback.print_exception(error, file=sys.stderr)
    print(f"error: {told}", file=sys.stderr, flush=True)
    if isinstance(told, UsageError):
        return 2
    return 3 if told.reason in (Reason.DATA_MISSING, Reason.DATA_INVALID, Reason.ENV_MISMATCH) else 6
