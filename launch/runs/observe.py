"""What runs there are and how they do: two commands a host, the rest is computed here."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import json
import re
import secrets
import tarfile
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from launch.errors import Exit, LaunchError, printable
from launch.executors import EXECUTORS
from launch.runs import by_hand
from launch.transport import Transport
from minimind.rundir import BY_HAND, RUN_ID, RunFiles, RunState, State, derive

MAX_JSON_BYTES = 1 << 20

LOOK = r"""
root=$1 run=$2 mark=$3
case $root in "~") root=$HOME ;; "~/"*) root=$HOME/${root#"~/"} ;; esac
printf 'root=%s\nnow=%s\nboot_id=%s\n' "$root" "$(date +%s)" "$(cat /proc/sys/kernel/random/boot_id 2>/dev/null)"
where=./$run
printf %s "$mark"
{ cd "$root/runs" 2>/dev/null && [ -d "$where" ]; } || exit 0
find "$where" -name ckpt -prune -o -name export -prune -o -type f -size -2048 \( -name spec.json -o -name handle.json \
  -o -name beat.json -o -name outcome.json -o -name exit.json \) -print 2>/dev/null | tar -cf - -T - 2>/dev/null
printf %s "$mark"
find "$where" -name ckpt -prune -o -name '*.tmp' -prune -o \( -type f -o -type d \) -exec ls -ldn {} + 2>/dev/null
printf %s "$mark"
tail -n 2 "$where/metrics.jsonl" "$where"/*/metrics.jsonl /dev/null 2>/dev/null
exit 0
"""
"""Prints, divided by a mark: root, clock, boot id; a tar of the small JSON files; a listing with sizes; last metrics.

The listing comes after the JSON, because a run writes its weights before the exit.json that speaks of them.
"""


@dataclass(frozen=True, kw_only=True)
class Run:
    """One run as observed. ``run_dir`` is absolute on the host; ``said`` has what, why and remedy of a failed one."""

    run_id: str
    host: str
    run_dir: str
    state: RunState
    spec: Mapping[str, Any] = field(default_factory=dict)
    handle: Mapping[str, Any] = field(default_factory=dict)
    said: Mapping[str, Any] = field(default_factory=dict)
    loss: float | None = None

    @property
    def name(self) -> str | None:
        """The name given with ``--name``."""
        return self.spec.get("name")

    @property
    def root(self) -> str:
        """The host's root, absolute."""
        return self.run_dir.rpartition("/runs/")[0]

    def row(self) -> dict[str, Any]:
        """The run as ``--json`` shows it."""
        return {
            "run_id": self.run_id,
            "name": self.name,
            "host": self.host,
            "stage": self.spec.get("stage") or self.run_id.split("-")[2],
            "state": str(self.state.state),
            "reason": self.state.reason and str(self.state.reason),
            "attempt": self.state.attempt,
            "last_step": self.state.last_step,
            "loss": self.loss,
            "nproc": self.handle.get("nproc") or self.spec.get("nproc"),
            "executor": self.spec.get("executor"),
            "run_dir": self.run_dir,
            "created_at": self.spec.get("created_at"),
            "said": dict(self.said) or None,
        }


@dataclass(frozen=True, kw_only=True)
class _Look:
    root: str
    now: float
    boot_id: str | None
    files: Mapping[str, RunFiles]
    losses: Mapping[str, float]


def observe(transport: Transport, *, root: str | None = None, run_id: str = "") -> list[Run]:
    """Every run of a host, or one, oldest first. ``root`` defaults to the host's.

    Raises:
        LaunchError: UNREACHABLE, or HOST_NOT_READY when its shell does not answer as a shell.
    """
    look, alive = _look(transport, root, run_id), dict[str, bool | None]()
    for _ in range(3):
        handles = {run: _handle(read) for run, read in look.files.items()}
        alive = _alive(transport, look)
        if not any(_state(look, run, alive).state is State.LOST for run in alive):
            break
        # it may have written its last words between our two questions, or been resumed: what is dead, read once more
        look = _look(transport, root, run_id)
        if all(_handle(look.files[run]) == handles[run] for run in alive if run in look.files):
            break
    return [_run(transport, look, run, _state(look, run, alive)) for run in look.files]


def _state(look: _Look, run: str, alive: Mapping[str, bool | None]) -> RunState:
    return derive(look.files[run], alive.get(run), look.now, boot_id=look.boot_id)


def _handle(files: RunFiles) -> Mapping[str, Any]:
    return files.handle or files.beat or {}


def _run(transport: Transport, look: _Look, run: str, state: RunState) -> Run:
    read = look.files[run]
    ended = {**read.outcomes.get(state.attempt, {}), **read.exits.get(state.attempt, {})}
    return Run(
        run_id=run,
        host=transport.host.name,
        run_dir=f"{look.root}/runs/{run}",
        state=state,
        spec=read.spec or {},
        handle=_handle(read),
        said={key: printable(str(ended[key])) for key in ("what", "why", "remedy") if ended.get(key)},
        loss=look.losses.get(run),
    )


def _look(transport: Transport, root: str | None, run_id: str) -> _Look:
    mark = secrets.token_hex(16)
    result = transport.read(["sh", "-c", LOOK, "sh", root or transport.host.root, run_id, mark], check=False)
    head, archive, listing, metrics = (*result.stdout.split(mark.encode()), b"", b"", b"")[:4]
    facts = dict(line.split("=", 1) for line in head.decode(errors="replace").splitlines() if "=" in line)
    if "now" not in facts:
        raise LaunchError(
            f"the runs of {transport.host.name} cannot be read",
            why=result.stderr.decode(errors="replace").strip() or f"its shell ended with code {result.code}",
            remedy="log in by hand and see whether `sh` works there; `launch hosts` shows what answers",
            code=Exit.HOST_NOT_READY,
        )
    sizes, folders = _listing(listing.decode(errors="replace"))
    contents = _contents(archive)
    losses, steps = _last_metrics(metrics.decode(errors="replace"))
    return _Look(
        root=facts.get("root", ""),
        now=float(facts["now"]) if re.fullmatch("[0-9]{1,12}", facts["now"]) else time.time(),
        boot_id=facts.get("boot_id") or None,
        files={
            run: dataclasses.replace(
                RunFiles.parse(contents.get(run, {}), sizes=sizes.get(run, {}), folders=folders.get(run, ())),
                metrics_step=steps.get(run, 0),
            )
            for run in sorted({*sizes, *folders})
        },
        losses=losses,
    )


def _alive(transport: Transport, look: _Look) -> dict[str, bool | None]:
    unsettled = {run: read for run, read in look.files.items() if derive(read, None, 0.0).state is State.UNKNOWN}
    alive: dict[str, bool | None] = {}
    for name, executor in EXECUTORS.items():
        handles = {run: _handle(read) for run, read in unsettled.items() if _executor(read) == name}
        if handles:
            alive |= executor.status(transport, handles)
    if hand := [run for run, read in unsettled.items() if _executor(read) == BY_HAND]:
        alive |= {run: signs.alive for run, signs in by_hand.look(transport, look.root, hand).items()}
    return alive


def _executor(files: RunFiles) -> str:
    return str((files.spec or {}).get("executor") or "venv")


def _split(path: str) -> tuple[str, str] | None:
    run, _, rest = path.lstrip("./").partition("/")
    return (run, rest) if RUN_ID.fullmatch(run) else None


def _listing(text: str) -> tuple[dict[str, dict[str, int]], dict[str, list[str]]]:
    sizes: dict[str, dict[str, int]] = {}
    folders: dict[str, list[str]] = {}
    for line in text.splitlines():
        fields = line.split(None, 8)
        if len(fields) == 9 and fields[4].isdecimal() and (place := _split(fields[8])):
            if line.startswith("d"):
                folders.setdefault(place[0], []).append(place[1])
            elif place[1]:
                sizes.setdefault(place[0], {})[place[1]] = int(fields[4])
    return sizes, folders


def _contents(archive: bytes) -> dict[str, dict[str, bytes]]:
    found: dict[str, dict[str, bytes]] = {}
    try:
        with tarfile.open(fileobj=io.BytesIO(archive)) as tar:
            for member in tar:
                place = _split(member.name)
                if place and member.isfile() and member.size <= MAX_JSON_BYTES and (file := tar.extractfile(member)):
                    found.setdefault(place[0], {})[place[1]] = file.read()
    except (tarfile.TarError, EOFError):
        pass  # a truncated archive: what could be read counts
    return found


def _last_metrics(text: str) -> tuple[dict[str, float], dict[str, int]]:
    """The last loss and the last step of each run."""
    losses: dict[str, float] = {}
    steps: dict[str, int] = {}
    run = None
    for line in text.splitlines():
        if heading := re.fullmatch(r"==> (.+) <==", line):
            place = _split(heading[1])
            run = place and place[0]
        elif run and line.startswith("{"):
            with contextlib.suppress(ValueError, KeyError, TypeError, OverflowError):
                metrics = json.loads(line)
                steps[run] = int(metrics["step"])
                losses[run] = float(metrics["loss"])
    return losses, steps
