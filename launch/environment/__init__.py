"""What a run is trained with on a host: found there, or brought there. Finding reads; bringing is a list of tasks."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from launch.environment import code, image, virtual
from launch.environment.shipping import Report
from launch.environment.task import Here, Site, Task
from launch.executors import Environment
from launch.transport import Transport
from launch.voice import Voice
from minimind.durable import sha256_file, tree_hash

__all__ = ["Here", "Provision", "Site", "Task", "markers", "provide", "recall"]


@dataclass(frozen=True, kw_only=True)
class Provision:
    """The environment that a run will have, and what has to be done first."""

    environment: Environment
    tasks: tuple[Task, ...]

    def carried_out(self, transport: Transport, laptop: Transport, voice: Voice) -> Environment:
        """Do what has to be done first; the environment as the host knows it then.

        Raises:
            LaunchError: what could not be brought.
        """
        environment = self.environment
        for task in self.tasks:
            done = task.do(transport, laptop, voice)
            if isinstance(done, Report) and environment.image_id:
                environment = replace(environment, image_id=done.arrived_id)  # not each store names an image alike
        return environment


def _venv(site: Site) -> Provision:
    python, lock_hash, tasks = virtual.find(site)
    pythonpath, code_hash, code_tasks = code.find(site)
    environment = Environment(python=python, pythonpath=pythonpath, lock_hash=lock_hash, code_hash=code_hash)
    return Provision(environment=environment, tasks=(*tasks, *code_tasks))


def _docker(site: Site) -> Provision:
    found, tasks = image.find(site)
    environment = Environment(image_id=found.id, lock_hash=found.lock_hash, code_hash=found.code_hash)
    return Provision(environment=environment, tasks=tasks)


PROVIDERS: dict[str, Callable[[Site], Provision]] = {"docker": _docker, "venv": _venv}


def markers(here: Here, *more: Environment) -> list[str]:
    """The paths to ask a host about for :attr:`Site.present`: this laptop's code and environments, and ``more``."""
    code_hashes = [tree_hash(here.package), *(wanted.code_hash for wanted in more)]
    lock_hashes = [*map(sha256_file, virtual.locks(here.envs)), *(wanted.lock_hash for wanted in more)]
    return [
        *(code.marker(value) for value in code_hashes if value),
        *(virtual.marker(value) for value in lock_hashes if value),
    ]


def provide(executor: str, site: Site) -> Provision:
    """Find what a new run will be trained with; changes nothing.

    Raises:
        LaunchError: HOST_NOT_READY when the host cannot be made ready from here.
    """
    return PROVIDERS[executor](site)


def recall(executor: str, site: Site, wanted: Environment) -> Provision:
    """What an earlier run was started with, for its next attempt; changes nothing.

    Raises:
        LaunchError: HOST_NOT_READY when it is no longer on the host.
    """
    if executor == "docker":
        return Provision(environment=image.recall(site, wanted), tasks=())
    python, tasks = virtual.recall(site, wanted.lock_hash)
    environment = Environment(
        python=python,
        pythonpath=code.recall(site, wanted.code_hash),
        lock_hash=wanted.lock_hash,
        code_hash=wanted.code_hash,
    )
    return Provision(environment=environment, tasks=tasks)
