"""The run directory: every name in it, how files get there, and what they say together.

Standard library only: the launcher reads run directories on the laptop with this module, the supervisor and the
trainers write them with it on the host. Nothing here stores a state; :func:`derive` computes it from the files.
"""

from __future__ import annotations

import dataclasses
import enum
import json
import os
import re
import secrets
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from minimind.durable import publish as publish
from minimind.durable import to_json as to_json

BEAT_INTERVAL_S = 10.0
BEAT_STALE_S = 60.0
BY_HAND = "none"
"""The executor in the spec of a run that somebody started with ``python -m minimind``."""
RUN_ID = re.compile(r"\d{8}-\d{6}-[a-z][a-z0-9_]*-[0-9a-f]{4}")
CHECKPOINT = re.compile(r"step-(\d{8})")


class Reason(enum.StrEnum):
    """Why a run failed or was lost."""

    OOM_KILLED = "oom_killed"
    OUT_OF_GPU_MEMORY = "out_of_gpu_memory"
    NO_WEIGHTS = "no_weights"
    NAN_LOSS = "nan_loss"
    DISK_FULL = "disk_full"
    DATA_MISSING = "data_missing"
    DATA_INVALID = "data_invalid"
    SIGNAL = "signal"
    HOST_REBOOTED = "host_rebooted"
    TRAINER_ERROR = "trainer_error"
    ENV_MISMATCH = "env_mismatch"
    HUNG = "hung"


class State(enum.StrEnum):
    """What a run is doing, as far as its files and its process tell."""

    PREPARED = "PREPARED"
    STARTING = "STARTING"
    RUNNING = "RUNNING"
    STALLED = "STALLED"
    SUCCEEDED = "SUCCEEDED"
    STOPPED = "STOPPED"
    FAILED = "FAILED"
    LOST = "LOST"
    UNKNOWN = "UNKNOWN"

    @property
    def ended(self) -> bool:
        """True when nothing of the run is alive any more."""
        return self in (State.SUCCEEDED, State.STOPPED, State.FAILED, State.LOST)


class RunError(Exception):
    """What a user, a file or a machine caused: one paragraph, recorded in outcome.json, never a traceback."""

    agreed = False
    """Whether every rank leaves at the same place, so that none waits for another."""
    ranks: tuple[int, ...] = ()
    """Ranks whose fault it is, where that is known."""

    def __init__(self, what: str, *, why: str, remedy: str, reason: Reason = Reason.TRAINER_ERROR) -> None:
        super().__init__(what)
        self.what, self.why, self.remedy, self.reason = what, why, remedy, reason

    def __str__(self) -> str:
        return f"{self.what}\n  why: {self.why}\n  remedy: {self.remedy}"


class RunDir:
    """Names every file of one run. ``root`` is ``<root>/runs/<run id>``."""

    def __init__(self, root: Path | str) -> None:
        self.root = Path(root)
        self.spec = self.root / "spec.json"
        self.handle = self.root / "handle.json"
        self.env = self.root / "env.json"
        self.beat = self.root / "beat.json"
        self.attempts = self.root / "attempts"
        self.metrics = self.root / "metrics.jsonl"
        self.checkpoints = self.root / "ckpt"
        self.export = self.root / "export"
        self.profile = self.root / "profile"
        self.stop = self.root / "stop"
        self.moved = self.root / "moved.json"
        self.lock = self.root / "lock"

    def attempt(self, number: int) -> Path:
        """The folder of one attempt, counted from 1."""
        return self.attempts / str(number)

    def last_attempt(self) -> int:
        """The highest attempt that has a folder; 0 when there was none."""
        names = os.listdir(self.attempts) if self.attempts.is_dir() else []
        return max((int(name) for name in names if name.isdecimal()), default=0)

    def checkpoint_steps(self) -> list[int]:
        """Steps with a published checkpoint, ascending. Folders still being built have other names."""
        names = os.listdir(self.checkpoints) if self.checkpoints.is_dir() else []
        return sorted(int(found[1]) for name in names if (found := CHECKPOINT.fullmatch(name)))


@dataclass(frozen=True, kw_only=True)
class RunSpec:
    """What was asked for: written once before the start, and all that the supervisor needs."""

    run_id: str
    stage: str
    flags: list[str]
    nproc: int
    executor: str
    name: str | None = None
    image_digest: str | None = None
    lock_hash: str | None = None
    code_hash: str | None = None
    commit: str | None = None
    dirty_hash: str | None = None
    inputs: list[dict[str, Any]] = field(default_factory=list)
    secret_names: list[str] = field(default_factory=list)
    created_at: str = ""
    created_by: str = ""

    def to_json(self) -> bytes:
        """The bytes of spec.json."""
        return to_json(dataclasses.asdict(self))

    @classmethod
    def from_json(cls, data: bytes) -> RunSpec:
        """Parse spec.json; unknown keys of a newer version are ignored.

        Raises:
            RunError: when it is no spec.
        """
        try:
            raw = json.loads(data)
            known = {f.name for f in dataclasses.fields(cls)}
            return cls(**{key: value for key, value in raw.items() if key in known})
        except (ValueError, TypeError, AttributeError) as error:
            raise RunError(
                "spec.json cannot be read", why=str(error), remedy="start the run again with `launch run`"
            ) from error


def new_run_id(stage: str, *, now_utc: str) -> str:
    """``<YYYYMMDD-HHMMSS>-<stage>-<4 hex>``; ``now_utc`` is ``%Y%m%d-%H%M%S``."""
    return f"{now_utc}-{stage}-{secrets.token_hex(2)}"


@dataclass(frozen=True, kw_only=True)
class RunFiles:
    """A run directory as read at one moment. JSON that does not parse counts as absent: a reader never sees a half."""

    spec: Mapping[str, Any] | None = None
    handle: Mapping[str, Any] | None = None
    beat: Mapping[str, Any] | None = None
    outcomes: Mapping[int, Mapping[str, Any]] = field(default_factory=dict)
    exits: Mapping[int, Mapping[str, Any]] = field(default_factory=dict)
    attempts: frozenset[int] = frozenset()
    export_bytes: Mapping[str, int] = field(default_factory=dict)
    stop: bool = False
    metrics_step: int = 0  # on the last line of metrics.jsonl, where that was read: beat.json may be 10 s older

    @classmethod
    def parse(cls, files: Mapping[str, bytes], *, sizes: Mapping[str, int], folders: Iterable[str] = ()) -> RunFiles:
        """Build from relative names: contents of the JSON files, lengths of all files, the folders."""
        loaded = {name: value for name, data in files.items() if isinstance(value := _load(data), dict)}
        per_attempt: dict[str, dict[int, Mapping[str, Any]]] = {"outcome.json": {}, "exit.json": {}}
        attempts = set()
        for name in (*sizes, *files, *folders):
            parts = name.split("/")
            if len(parts) >= 2 and parts[0] == "attempts" and parts[1].isdecimal():
                attempts.add(int(parts[1]))
                if len(parts) == 3 and parts[2] in per_attempt and name in loaded:
                    per_attempt[parts[2]][int(parts[1])] = loaded[name]
        return cls(
            spec=loaded.get("spec.json"),
            handle=loaded.get("handle.json"),
            beat=loaded.get("beat.json"),
            outcomes=per_attempt["outcome.json"],
            exits=per_attempt["exit.json"],
            attempts=frozenset(attempts),
            export_bytes={n.removeprefix("export/"): size for n, size in sizes.items() if n.startswith("export/")},
            stop="stop" in sizes,
        )

    @classmethod
    def read(cls, root: Path) -> RunFiles:
        """Read a run directory on this machine."""
        present = [p for p in root.rglob("*") if ".tmp" not in p.name]
        sizes = {p.relative_to(root).as_posix(): p.stat().st_size for p in present if p.is_file()}
        folders = [p.relative_to(root).as_posix() for p in present if p.is_dir()]
        return cls.parse(
            {name: (root / name).read_bytes() for name in sizes if name.endswith(".json")}, sizes=sizes, folders=folders
        )


def _load(data: bytes) -> object:
    try:
        return json.loads(data)
    except ValueError:
        return None


@dataclass(frozen=True, kw_only=True)
class RunState:
    """The verdict of :func:`derive`; ``said`` is what the trainer or supervisor wrote about it."""

    state: State
    reason: Reason | None = None
    attempt: int = 0
    last_step: int = 0
    said: Mapping[str, Any] = field(default_factory=dict)


def derive(files: RunFiles, alive: bool | None, host_now: float, *, boot_id: str | None = None) -> RunState:
    """Compute a run's state.

    Args:
        files: the directory as read.
        alive: whether the process or container of handle.json (else of beat.json) runs; None when that cannot be known.
        host_now: the *host's* clock, seconds since the epoch (ages are differences on one clock).
        boot_id: the host's boot id now, when known.
    """
    handle = files.handle or {}
    attempt = max([_int(handle.get("attempt")), *files.attempts])
    outcome, ended = files.outcomes.get(attempt, {}), files.exits.get(attempt)
    beat = files.beat if files.beat and files.beat.get("attempt") == attempt else None
    told = outcome.get("last_step") or (ended or {}).get("last_step")
    last_step = _int(told) or files.metrics_step or _int((beat or {}).get("last_step"))

    def verdict(state: State, reason: Reason | None = None, said: Mapping[str, Any] | None = None) -> RunState:
        return RunState(state=state, reason=reason, attempt=attempt, last_step=last_step, said=said or outcome)

    if ended is not None:
        return verdict(*_ending(outcome, ended, files.export_bytes))
    if alive is None:
        return verdict(State.UNKNOWN)
    if alive:
        if beat is None:  # nobody beats for a run that was started by hand
            by_hand = bool(files.spec and files.spec.get("executor") == BY_HAND)
            return verdict(State.RUNNING if by_hand and last_step else State.STARTING)
        stale = host_now - _int(beat.get("time")) > BEAT_STALE_S
        return verdict(State.STALLED if stale else State.RUNNING if beat.get("training") else State.STARTING)
    if attempt == 0 and not handle:
        return verdict(State.PREPARED)
    started_on = handle.get("boot_id") or (beat or {}).get("boot_id")
    rebooted = bool(boot_id and started_on and started_on != boot_id)
    return verdict(State.LOST, Reason.HOST_REBOOTED if rebooted else None)


def _ending(
    outcome: Mapping[str, Any], ended: Mapping[str, Any], export_bytes: Mapping[str, int]
) -> tuple[State, Reason | None]:
    if ended.get("reason"):
        return State.FAILED, _reason(ended["reason"])
    if ended.get("stopped"):  # at once, by somebody who asked for it: no rank could say so
        return State.STOPPED, None
    status, clean = outcome.get("status"), ended.get("code") == 0
    if status == "done" and clean:
        told = ended.get("weights")
        weights = [item for item in told if isinstance(item, dict)] if isinstance(told, list) else []
        intact = all(
            str(item.get("path")) in export_bytes and export_bytes[str(item["path"])] == item.get("bytes")
            for item in weights
        )
        return (State.SUCCEEDED, None) if weights and intact else (State.FAILED, Reason.NO_WEIGHTS)
    if status == "stopped" and clean:
        return State.STOPPED, None
    return State.FAILED, _reason(outcome.get("reason")) if status == "error" else Reason.TRAINER_ERROR


def _int(value: object) -> int:
    """A number from a file that anybody may have written; 0 for anything else."""
    return int(value) if isinstance(value, int | float) and abs(value) < 1e15 else 0


def _reason(text: object) -> Reason:
    try:
        return Reason(str(text))
    except ValueError:
        return Reason.TRAINER_ERROR
