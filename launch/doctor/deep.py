"""What only trying tells: an all-reduce over the ranks and a disk test, in the environment that a run would have."""

from __future__ import annotations

import json
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from launch import environment
from launch.argv import selftest
from launch.doctor.check import Check, amount, ok, unfit, warn
from launch.environment import Site, code
from launch.errors import LaunchError, printable
from launch.executors import Environment, choose

TIMEOUT_S = selftest.LIMIT_S + 60.0
SLOW_WRITE, SLOW_FSYNC_S = 50_000_000, 0.1
"""Bytes a second and seconds: below and above these a checkpoint of a small model takes minutes, or a beat a second."""
SLOW_GPUS = 1_000_000_000
"""Bytes a second between GPUs; PCIe 3 alone gives several times that."""
ON_CPU_RANKS = 2


def examine(site: Site, *, nproc: int | None) -> list[Check]:
    """Run both tests. The environment must be there already; what the tests need besides is removed again."""
    facts, host = site.facts, site.host
    gpus = min(len(facts.gpus), host.gpus) if host.gpus is not None else len(facts.gpus)
    ranks = nproc or gpus or ON_CPU_RANKS
    try:
        executor = choose(host, facts).name
        provision = environment.provide(executor, site)
    except LaunchError as error:
        return [unfit("environment", f"{error.what}: {error.why}", error.remedy)]
    missing = [task for task in provision.tasks if not isinstance(task, code.SendCode)]
    checks = []
    if missing:
        remedy = f"launch run … --host {host.name} brings it with the first run; then look again"
        checks.append(warn("environment", "not there yet, so no all-reduce was run", remedy))
        if executor == "docker" or not facts.python_ready or facts.python is None:
            return checks
        provision = environment.Provision(environment=Environment(python=facts.python), tasks=())
    tried = _Tried(site=site, environment=provision.environment, executor=executor, ranks=ranks)
    checks.append(_disk(tried.run(selftest.disk(tried.python)), host.name))
    if not missing:
        checks.append(_allreduce(tried.run(selftest.allreduce(tried.python, ranks=ranks)), ranks, host.name))
    return checks


def allreduce(site: Site, *, ranks: int) -> Check:
    """Let so many ranks compute a sum together. The environment must be there already; nothing of the test stays."""
    executor = choose(site.host, site.facts).name
    provided = environment.provide(executor, site).environment
    tried = _Tried(site=site, environment=provided, executor=executor, ranks=ranks)
    return _allreduce(tried.run(selftest.allreduce(tried.python, ranks=ranks)), ranks, site.host.name)


@dataclass(frozen=True, kw_only=True)
class _Tried:
    site: Site
    environment: Environment
    executor: str
    ranks: int

    @property
    def python(self) -> str:
        return "python" if self.executor == "docker" else self.environment.python or "python3"

    def run(self, command: Sequence[str]) -> dict[str, Any] | str:
        """What the command printed as JSON, or why it failed."""
        facts, transport = self.site.facts, self.site.transport
        folder = f"{facts.root}/.doctor-{secrets.token_hex(8)}"
        if self.executor == "docker":
            command = selftest.in_a_container(
                command,
                image_id=self.environment.image_id or "",
                root=facts.root,
                folder=folder,
                uid=facts.uid,
                gid=facts.gid,
                ranks=self.ranks,
                gpus=bool(facts.gpus and facts.docker_has_nvidia),
            )
        argv = selftest.in_a_folder(command, folder=folder)
        try:
            result = transport.run(argv, stdin=code.pack(self.site.here.package), timeout_s=TIMEOUT_S, check=False)
        except LaunchError as error:
            return f"{error.what}: {error.why}"
        told = [line for line in result.text.splitlines() if line.startswith("{")]
        if result.code == 0 and told:
            return dict(json.loads(told[-1]))
        lines = [line for line in result.stderr.decode(errors="replace").splitlines() if line.strip()]
        said = next((line for line in reversed(lines) if "Error" in line), lines[-1] if lines else "it said nothing")
        return printable(f"exit code {result.code}: {said.strip()[:300]}")


def _disk(said: dict[str, Any] | str, host: str) -> Check:
    if isinstance(said, str):
        return unfit("disk test", said, f"see that the root of {host} can be written and has 300 MB free")
    speed, median_s, worst_s = said["write_bytes_per_s"], said["fsync_median_s"], said["fsync_max_s"]
    found = f"{amount(speed)}/s written and synced, fsync {median_s * 1000:.1f} ms (at most {worst_s * 1000:.0f} ms)"
    if speed < SLOW_WRITE or median_s > SLOW_FSYNC_S:
        return warn(
            "disk test", found, f"set root = PATH of {host} to a local disk; or save less often (--save_interval)"
        )
    return ok("disk test", found)


def _allreduce(said: dict[str, Any] | str, ranks: int, host: str) -> Check:
    if isinstance(said, str):
        return unfit("all-reduce", f"{ranks} ranks: {said}", f"train with --nproc 1 on {host}, or see to that first")
    found = f"{said['ranks']} ranks on {said['device']}, sums right, {amount(said['bytes_per_s'])}/s a rank"
    if said["device"] == "cuda" and ranks > 1 and said["bytes_per_s"] < SLOW_GPUS:
        return warn("all-reduce", found, "GPUs talk slowly: more --accumulation_steps hide it; see the line `topology`")
    return ok("all-reduce", found)
