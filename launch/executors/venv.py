"""Runs as processes in a virtual environment: the supervisor in a session of its own."""

from __future__ import annotations

import json
from collections.abc import Mapping

from launch.argv import supervise
from launch.errors import Exit, LaunchError
from launch.executors.base import Attempt, Handle
from launch.facts import HostFacts
from launch.transport import Transport


class VenvExecutor:
    """A supervisor process; its pid, start time and boot id are the handle, which it writes itself."""

    name = "venv"

    def start(self, transport: Transport, facts: HostFacts, attempt: Attempt) -> Handle:
        """See :class:`launch.executors.base.Executor`."""
        environment = attempt.environment
        argv = supervise.start(
            python=environment.python or "python3",
            pythonpath=environment.pythonpath or "",
            run_dir=attempt.run_dir,
            nproc=attempt.nproc,
            secrets=attempt.secrets_file,
        )
        argv, stdin = attempt.around(argv)
        result = transport.run(argv, stdin=stdin, check=False)
        if result.code == 0:
            return _handle(result.stdout)
        said = result.stderr.decode(errors="replace").strip().splitlines()
        if result.code == Exit.REFUSED:
            raise LaunchError(
                f"{attempt.run_id} is alive already",
                why=" ".join(said[1:2]).removeprefix("  why: ") or "another supervisor holds its lock",
                remedy=f"launch logs -f {attempt.run_id}",
                code=Exit.REFUSED,
            )
        raise LaunchError(
            f"{attempt.run_id} could not be started on {transport.host.name}",
            why="\n".join(said[-8:]) or f"its supervisor ended with code {result.code} and said nothing",
            remedy=f"see to that, then `launch resume {attempt.run_id}`",
            code=Exit.HOST_NOT_READY,
        )

    def status(self, transport: Transport, handles: Mapping[str, Handle]) -> dict[str, bool | None]:
        """See :class:`launch.executors.base.Executor`."""
        pids = {run: int(handle["pid"]) for run, handle in handles.items() if str(handle.get("pid", "")).isdecimal()}
        if not pids:
            return dict.fromkeys(handles, False)
        lines = transport.read(supervise.alive(sorted(set(pids.values()))), check=False).text.splitlines()
        boot_id = lines[0].strip() if lines else ""
        started = dict(line.strip().split(" ", 1) for line in lines[1:] if " " in line.strip())
        return {
            run: run in pids
            and (not boot_id or handle.get("boot_id") in (None, boot_id))
            and started.get(str(pids[run]), "").strip() == str(handle.get("start_time"))
            for run, handle in handles.items()
        }

    def stop(self, transport: Transport, run_id: str, handle: Handle) -> None:
        """See :class:`launch.executors.base.Executor`."""
        if self.status(transport, {run_id: handle})[run_id]:
            transport.run(supervise.kill(pid=int(handle["pid"]), start_time=str(handle.get("start_time"))), check=False)

    def logs(self, transport: Transport, run_id: str, handle: Handle) -> str:
        """See :class:`launch.executors.base.Executor`."""
        return ""


def _handle(printed: bytes) -> Handle:
    try:
        loaded = json.loads(printed)
    except ValueError:  # a dry run prints nothing
        return {}
    return loaded if isinstance(loaded, dict) else {}
