"""Runs as containers: the supervisor is the image's entry point, the run directory is mounted at its own path."""

from __future__ import annotations

import json
import secrets
from collections.abc import Mapping
from typing import Any

from launch.argv import docker
from launch.errors import Exit, LaunchError
from launch.executors.base import Attempt, Handle
from launch.facts import HostFacts
from launch.transport import Transport
from minimind.durable import to_json

ALIVE = ("running", "paused", "restarting", "removing")
COULD_NOT_START = 125


class DockerExecutor:
    """A container by the name ``minimind-<run id>-a<attempt>``; its name is the lock."""

    name = "docker"

    def start(self, transport: Transport, facts: HostFacts, attempt: Attempt) -> Handle:
        """See :class:`launch.executors.base.Executor`."""
        name, token = docker.container_name(attempt.run_id, attempt.number), secrets.token_hex(8)
        nproc = attempt.nproc or attempt.spec_nproc
        argv = docker.run(
            name=name,
            image_id=attempt.environment.image_id or "",
            run_id=attempt.run_id,
            token=token,
            run_dir=attempt.run_dir,
            root=attempt.root,
            uid=facts.uid,
            gid=facts.gid,
            nproc=nproc,
            gpus=bool(facts.gpus and facts.docker_has_nvidia),
            networked=attempt.networked,
            readonly=attempt.readonly,
            nproc_override=attempt.nproc,
            secrets=attempt.secrets_file,
        )
        argv, stdin = attempt.around(argv, container=name)
        result = transport.run(argv, stdin=stdin, check=False)
        if result.code == COULD_NOT_START and self._clear(transport, name, token):
            result = transport.run(argv, stdin=stdin, check=False)
        if result.code != 0:
            self._clear(transport, name, token)
            raise LaunchError(
                f"{attempt.run_id} could not be started on {transport.host.name}",
                why=_last_lines(result.stderr) or f"docker run ended with code {result.code}",
                remedy=f"see to that, then `launch resume {attempt.run_id}`",
                code=Exit.HOST_NOT_READY,
            )
        handle = {
            "kind": "docker",
            "container": result.text,
            "name": name,
            "boot_id": facts.boot_id,
            "attempt": attempt.number,
            "nproc": nproc,
        }
        transport.publish(f"{attempt.run_dir}/handle.json", to_json(handle))
        return handle

    def _clear(self, transport: Transport, name: str, token: str) -> bool:
        """Remove what a failed start left; True when an ended container of an earlier try held the name."""
        found = next((c for c in self._containers(transport) or () if c.get("Names") == name), None)
        if found is None:
            return False
        if found.get("State") in ALIVE:
            raise LaunchError(
                f"{name.removeprefix('minimind-').rpartition('-a')[0]} is alive already",
                why=f"the container {name} runs on {transport.host.name}",
                remedy="follow it with `launch logs -f`, or stop it first with `launch stop`",
                code=Exit.REFUSED,
            )
        ours = f"{docker.TOKEN_LABEL}={token}" in str(found.get("Labels", ""))
        if not ours and found.get("State") == "created":  # another launcher is between create and start
            return False
        transport.run(docker.remove(name), check=False)
        return not ours

    def status(self, transport: Transport, handles: Mapping[str, Handle]) -> dict[str, bool | None]:
        """See :class:`launch.executors.base.Executor`."""
        containers = self._containers(transport)
        if containers is None:
            return dict.fromkeys(handles, None)
        labels = [str(c.get("Labels", "")).split(",") for c in containers if c.get("State") in ALIVE]
        return {run: any(f"{docker.RUN_LABEL}={run}" in label for label in labels) for run in handles}

    def stop(self, transport: Transport, run_id: str, handle: Handle) -> None:
        """See :class:`launch.executors.base.Executor`."""
        transport.run(docker.kill(_name(run_id, handle)), check=False)

    def logs(self, transport: Transport, run_id: str, handle: Handle) -> str:
        """See :class:`launch.executors.base.Executor`."""
        result = transport.read(docker.logs(_name(run_id, handle), lines=20), check=False)
        return (result.stdout + result.stderr).decode(errors="replace").strip() if result.code == 0 else ""

    def _containers(self, transport: Transport) -> list[dict[str, Any]] | None:
        result = transport.read(docker.containers(), check=False)
        if result.code != 0:
            return None
        return [json.loads(line) for line in result.text.splitlines() if line.startswith("{")]


def _name(run_id: str, handle: Handle) -> str:
    return str(handle.get("name") or docker.container_name(run_id, int(handle.get("attempt") or 1)))


def _last_lines(stderr: bytes) -> str:
    return "\n".join(stderr.decode(errors="replace").strip().splitlines()[-6:])
