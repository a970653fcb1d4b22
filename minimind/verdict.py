"""How an attempt ended, from what its processes left behind: the content of exit.json. Standard library only."""

from __future__ import annotations

import json
import signal
from pathlib import Path
from typing import Any

from minimind.durable import is_disk_full, verified_weights
from minimind.rundir import Reason, RunError


def judge(folder: Path, export: Path, code: int, *, killed_for_memory: bool, gave_up: bool) -> dict[str, Any]:
    """What exit.json says after torchrun has ended.

    Args:
        folder: the attempt's folder, with outcome.json, error.rankK.json and ranks.json where they were written.
        export: the run's final weights; believed only when they match their checksums.
        code: torchrun's exit code, negative when a signal ended it.
        killed_for_memory: whether the kernel killed something for memory meanwhile.
        gave_up: whether the supervisor signalled torchrun because a stop took too long.
    """
    outcome = _read(folder / "outcome.json", {})
    errors = [found for path in folder.glob("error.rank*.json") if (found := _read(path, {}))]
    failed = [one for one in _read(folder / "ranks.json", []) if isinstance(one, dict)]
    status = outcome.get("status")
    weights = verified_weights(export) if status == "done" and code == 0 else []
    first: dict[str, Any] = min(errors, key=lambda error: float(error.get("time", 0)), default={})
    killed = next((one for one in failed if int(one.get("code", 0)) < 0), None)
    unforeseen = first.get("reason") in (None, Reason.TRAINER_ERROR)  # what a dead peer makes of the others
    if code == 0 and status == "done":
        said: dict[str, Any] = {"reason": None if weights else Reason.NO_WEIGHTS}
    elif code == 0 and status == "stopped":
        said = {"reason": None}
    elif killed_for_memory:
        said = {"reason": Reason.OOM_KILLED, **_said(first)}
    elif killed and unforeseen:
        said = {"reason": Reason.SIGNAL, **_killed(killed, folder)}
    elif errors:
        said = {"reason": first["reason"], **_said(first)}
    elif code == 0:
        said = {"reason": Reason.NO_WEIGHTS}
    elif code < 0 or gave_up:
        said = {"reason": Reason.SIGNAL, **_ended(code, gave_up=gave_up)}
    else:
        said = {"reason": Reason.TRAINER_ERROR, **_silent(code, failed, folder)}
    return {"code": code, **said, "weights": weights}


def broken(error: Exception, run_dir: Path) -> dict[str, Any]:
    """What exit.json says when the supervisor itself could not go on."""
    told = paragraph(error, run_dir)
    return {"code": 3, "reason": told.reason, "what": told.what, "why": told.why, "remedy": told.remedy, "weights": []}


def paragraph(error: Exception, run_dir: Path) -> RunError:
    """What stopped a supervisor, for people."""
    if isinstance(error, RunError):
        return error
    if is_disk_full(error):
        return RunError(
            f"the disk of {run_dir} is full",
            why=str(error),
            remedy="free space there, then `launch resume`; what was published before is whole",
            reason=Reason.DISK_FULL,
        )
    return RunError(
        f"the supervisor of {run_dir.name} could not go on: {type(error).__name__}: {error}",
        why="it keeps the run directory, the logs and the lock, and one of them could not be used",
        remedy=f"see that {run_dir} can be written by this user, then `launch resume`",
    )


def _killed(one: dict[str, Any], folder: Path) -> dict[str, Any]:
    try:
        name = signal.Signals(-int(one["code"])).name
    except ValueError:
        name = f"signal {-int(one['code'])}"
    return {
        "what": f"rank {one.get('rank')} was ended by {name}",
        "why": f"somebody or something sent it to process {one.get('pid')}, or the process crashed; the last that the "
        f"rank wrote is in {folder / 'log.rank{}.txt'.format(one.get('rank'))}",
        "remedy": "if it was not you, look at the host's kernel log (`dmesg`), then `launch resume`",
        "rank": one.get("rank"),
    }


def _ended(code: int, *, gave_up: bool) -> dict[str, Any]:
    return {
        "what": "the training was ended by a signal" if not gave_up else "the training did not stop when asked to",
        "why": f"torchrun ended with {code}"
        + (" after it was signalled: no checkpoint came within the grace period" if gave_up else ""),
        "remedy": "`launch resume` goes on from the last checkpoint",
    }


def _silent(code: int, failed: list[dict[str, Any]], folder: Path) -> dict[str, Any]:
    first = failed[0] if failed else {}
    who = f"rank {first['rank']}" if "rank" in first else "torchrun"
    log = folder / (f"log.rank{first['rank']}.txt" if "rank" in first else "log.txt")
    return {
        "what": f"{who} ended with exit code {first.get('code', code)} and did not say why",
        "why": f"it left before it could record a reason; its last words are in {log}",
        "remedy": f"read them (`launch logs {folder.parents[1].name}`), correct what they name, then `launch resume`",
        **({"rank": first["rank"]} if "rank" in first else {}),
    }


def _said(error: dict[str, Any]) -> dict[str, Any]:
    return {key: error[key] for key in ("what", "why", "remedy", "rank") if key in error}


def _read(path: Path, otherwise: Any) -> Any:
    try:
        loaded = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return otherwise
    return loaded if isinstance(loaded, type(otherwise)) else otherwise
