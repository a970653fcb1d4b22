"""The executors, in a table: what starts a run on a host and knows whether it lives."""

from __future__ import annotations

from launch.errors import Exit, LaunchError
from launch.executors.base import Attempt, Environment, Executor, Handle
from launch.executors.docker import DockerExecutor
from launch.executors.venv import VenvExecutor
from launch.facts import HostFacts
from launch.inventory import Host

__all__ = ["EXECUTORS", "Attempt", "Environment", "Executor", "Handle", "choose"]

EXECUTORS: dict[str, Executor] = {"docker": DockerExecutor(), "venv": VenvExecutor()}


def choose(host: Host, facts: HostFacts) -> Executor:
    """The host's executor; ``auto`` is docker where an engine answers, else venv.

    Raises:
        LaunchError: HOST_NOT_READY when the one asked for cannot work there.
    """
    if host.executor == "auto":
        return EXECUTORS["docker" if facts.docker_usable else "venv"]
    if host.executor not in EXECUTORS:
        raise LaunchError(
            f"{host.name} asks for the executor {host.executor}, which is not built yet",
            why=f"this version has {', '.join(EXECUTORS)}",
            remedy=f'set executor = "auto" for {host.name}',
            code=Exit.HOST_NOT_READY,
        )
    if host.executor == "docker" and not facts.docker_usable:
        raise LaunchError(
            f"{host.name} has no Docker engine that {facts.user or 'this user'} may use",
            why="`docker info` did not answer there",
            remedy=f'start Docker, add the user to its group, or set executor = "venv" for {host.name}',
            code=Exit.HOST_NOT_READY,
        )
    return EXECUTORS[host.executor]
