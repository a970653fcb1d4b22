"""Asking the trainers before anything is started: are these flags theirs, and what will the run do.

``launch`` never imports the trainers; their ``plan`` runs in a process of its own, here and on the host.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from launch.argv import plan as argv
from launch.errors import Exit, LaunchError
from launch.executors import Attempt, Executor
from launch.facts import HostFacts
from launch.transport import Transport
from launch.voice import Voice
from minimind.rundir import RunSpec

TIMEOUT_S = 300.0
SHOWN = ("steps", "memory", "disk", "time")
"""The lines of a plan that a start shows, after its warnings and its first line."""

OURS = ("--nproc", "--host", "--name", "--data", "--dry-run", "--detach", "--json")
"""Options of `launch run` that are no trainer's, should they stand behind --."""


class FlagCheck:
    """The trainer's own verdict on its flags, in a process on this machine that begins now. It looks at no file."""

    def __init__(self, stage: str, words: Sequence[str], *, package: Path, environ: Mapping[str, str]) -> None:
        self._words = words
        where = os.pathsep.join(filter(None, (str(package.parent), environ.get("PYTHONPATH"))))
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-m", "minimind", *argv.flags_only(stage, words)],
            env={**environ, "PYTHONPATH": where},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        )

    def result(self) -> str | None:
        """None when the flags are right, or cannot be checked here; the text of the help that they ask for.

        Raises:
            LaunchError: USAGE with the trainer's paragraph.
        """
        out = self._process.communicate()[0].decode("utf-8", "replace")
        if self._process.returncode == Exit.USAGE and (told := _error(_object(out.encode()))):
            what, why, remedy = told
            if ours := [word for word in self._words if word.partition("=")[0] in OURS]:
                remedy = f"{ours[0]} is an option of launch itself: put it before --"
            raise LaunchError(what, why=why, remedy=remedy, code=Exit.USAGE)
        return out if self._process.returncode == 0 and out.strip() else None


def ask(
    executor: Executor, transport: Transport, facts: HostFacts, attempt: Attempt, spec: RunSpec, voice: Voice
) -> None:
    """Have the run planned on its host, in one command, and say what matters of it.

    What fails in an unforeseen way, or would be the trainer's to say, stops nothing.

    Raises:
        LaunchError: HOST_NOT_READY with what is certain to fail.
    """
    if spec.stage == "tokenizer":
        return
    words = argv.of_run(spec.stage, spec.flags, nproc=spec.nproc, run_dir=attempt.run_dir, read_only=False)
    try:
        result = transport.run(executor.use(facts, attempt, words), check=False, timeout_s=TIMEOUT_S)
    except LaunchError as error:
        voice.say(f"there is no plan of this run: {error.what}")
        return
    found = _object(result.stdout)
    for line in lines(found):
        voice.say(line)
    if (told := _error(found)) and found["error"].get("certain"):
        what, why, remedy = told
        raise LaunchError(what, why=why, remedy=remedy, code=Exit.HOST_NOT_READY)


def peek(
    executor: Executor, transport: Transport, facts: HostFacts, attempt: Attempt, spec: RunSpec
) -> Mapping[str, Any]:
    """The plan of a run as far as it can be had without writing anything on the host; empty when it cannot."""
    if spec.stage == "tokenizer" or executor.name != "venv":  # a container, even a short one, is made there
        return {}
    words = argv.of_run(spec.stage, spec.flags, nproc=spec.nproc, run_dir=attempt.run_dir, read_only=True)
    try:
        return _object(transport.read(executor.use(facts, attempt, words), check=False, timeout_s=TIMEOUT_S).stdout)
    except LaunchError:
        return {}


def lines(found: Mapping[str, Any]) -> list[str]:
    """What a start says of a plan: warnings first."""
    warnings, told = (found.get(name) for name in ("warnings", "lines"))
    if not isinstance(warnings, list) or not isinstance(told, list):
        return []
    rest = [str(line) for line in told[1:] if str(line).startswith(tuple(f"{name}:" for name in SHOWN))]
    return [*(f"warning: {text}" for text in warnings), *map(str, told[:1]), *(f"  {line}" for line in rest)]


def _object(text: bytes) -> dict[str, Any]:
    try:
        loaded = json.loads(text)
    except ValueError:  # a dry run says nothing
        return {}
    return loaded if isinstance(loaded, dict) else {}


def _error(found: Mapping[str, Any]) -> tuple[str, str, str] | None:
    told = found.get("error")
    if not isinstance(told, dict):
        return None
    return str(told.get("what")), str(told.get("why")), str(told.get("remedy"))
