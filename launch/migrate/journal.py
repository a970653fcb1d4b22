"""What a move has done so far, kept beside launch.toml: a move that was killed goes on from here."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from launch.errors import Exit, LaunchError
from minimind.durable import fsync_dir
from minimind.rundir import publish, to_json

FOLDER, STATE = ".migrate", "state.json"


class Journal:
    """``<home>/.migrate/FROM.to.TO/``. Every change is published before it is believed; reading alone makes nothing."""

    def __init__(self, home: Path, source: str, target: str) -> None:
        self.folder = home / FOLDER / f"{source}.to.{target}"  # no host's name has a dot
        self.spool = self.folder / "spool"
        self._told = self._read()

    def _read(self) -> dict[str, Any]:
        path = self.folder / STATE
        try:
            told = json.loads(path.read_bytes())
            return {**told, "steps": dict(told["steps"]), "sent": dict(told["sent"]), "request": dict(told["request"])}
        except FileNotFoundError:
            return {}
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise LaunchError(
                f"{path} cannot be read",
                why=str(error),
                remedy="move it away: then the move begins anew, and nothing that has arrived is sent twice",
                code=Exit.INVALID,
            ) from error

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Keep other launchers out of this move; the kernel lets go when we are gone.

        Raises:
            LaunchError: REFUSED when another one is at work.
        """
        try:
            self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            fd = os.open(self.folder / "lock", os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
        except OSError as error:
            raise LaunchError(
                f"{self.folder} cannot be written",
                why=str(error),
                remedy="make room and permissions there: what a move has done is kept in it",
                code=Exit.HOST_NOT_READY,
            ) from error
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            self._told = self._read()
            yield
        except BlockingIOError as error:
            raise LaunchError(
                "this very move is under way",
                why=f"{self.folder / 'lock'} is held by a living process",
                remedy="wait for it to end",
                code=Exit.REFUSED,
            ) from error
        finally:
            os.close(fd)

    def begin(self, request: Mapping[str, Any], *, now_utc: str, again: bool) -> None:
        """Take up the move that was begun, or begin one; ``again`` lays an earlier one aside.

        What must be remembered of that one is which names it gave, and that its key may still open the target.

        Raises:
            LaunchError: REFUSED when something else was asked for before.
        """
        if self._told and again:
            path = self.folder / STATE
            os.replace(path, self.folder / f"state-{self._told.get('began_at', 'before')}.json")
            fsync_dir(self.folder)
            self._told = {key: self._told[key] for key in ("sent", "bridged") if key in self._told}
        wanted, given = dict(request), dict(self._told.get("request", request))
        if {**wanted, **given} != wanted:  # of what an older launch did not write down nothing is known
            before = ", ".join(f"{key} {value}" for key, value in given.items() if value)
            raise LaunchError(
                "this move was begun with another request",
                why=f"it was: {before}; begun at {self._told.get('began_at')}",
                remedy="give what was given then; or say --again for a new move: what has arrived is not sent twice",
                code=Exit.REFUSED,
            )
        if "steps" not in self._told:
            self._told = {"began_at": now_utc, "request": dict(request), "steps": {}, "sent": {}, **self._told}
            self._publish()
        elif given != wanted:
            self._told["request"] = wanted
            self._publish()

    def _publish(self) -> None:
        publish(self.folder / STATE, to_json(self._told))

    @property
    def began_at(self) -> str:
        """When this move was begun, UTC."""
        return str(self._told.get("began_at", ""))

    @property
    def ended(self) -> bool:
        """Whether this move is done, to its report."""
        return "report" in self

    def __contains__(self, step: str) -> bool:
        return step in self._told.get("steps", {})

    def facts(self, step: str) -> Mapping[str, Any]:
        """What a step left behind; empty when it is not done."""
        found: Mapping[str, Any] = self._told.get("steps", {}).get(step, {})
        return found

    @property
    def steps(self) -> Mapping[str, Mapping[str, Any]]:
        """Everything that is done."""
        found: Mapping[str, Mapping[str, Any]] = self._told.get("steps", {})
        return found

    def record(self, step: str, facts: Mapping[str, Any]) -> None:
        """A step is done."""
        self._told["steps"][step] = dict(facts)
        self._publish()

    def forget(self, *steps: str) -> None:
        """Steps have to be done again."""
        if any(step in self for step in steps):
            self._told["steps"] = {name: facts for name, facts in self._told["steps"].items() if name not in steps}
            self._publish()

    @property
    def intent(self) -> Mapping[str, Any]:
        """What the step that cannot be repeated is about to start: ``run_id`` and the attempts it had before."""
        found: Mapping[str, Any] = self._told.get("intent", {})
        return found

    def intend(self, **what: Any) -> None:
        """Write that down."""
        self._told["intent"] = what
        self._publish()

    @property
    def stopped(self) -> list[str]:
        """Runs that this move asked to stop, ended by now or not."""
        return list(self._told.get("stopped", []))

    def stopping(self, run_ids: Iterable[str]) -> None:
        """Runs are about to be asked to stop."""
        known = self.stopped
        if new := [run_id for run_id in run_ids if run_id not in known]:
            self._told["stopped"] = [*known, *new]
            self._publish()

    @property
    def bridged(self) -> bool:
        """Whether a way from host to host may still be open."""
        return bool(self._told.get("bridged"))

    def bridging(self, is_open: bool) -> None:
        """One is about to be opened, or has been closed."""
        if self.bridged != is_open:
            self._told["bridged"] = is_open
            self._publish()

    @property
    def sent(self) -> Mapping[str, str]:
        """The names on the target that this move may have given, with their sha256: these it may replace."""
        found: Mapping[str, str] = self._told.get("sent", {})
        return found

    def sending(self, names: Mapping[str, str]) -> None:
        """Names are about to be given."""
        if any(self.sent.get(name) != digest for name, digest in names.items()):
            self._told["sent"] = {**self.sent, **names}
            self._publish()
