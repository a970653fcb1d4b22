"""Starting a run: a plan that only reads, then its steps. On dry transports the same steps are only written down."""

from __future__ import annotations

import hashlib
import secrets
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath
from typing import Any

from launch import environment, facts, flags, inputs
from launch.errors import Exit, LaunchError
from launch.executors import Attempt, Environment, Executor, Handle, choose
from launch.inventory import Inventory
from launch.runs import forecast, names
from launch.secrets import Secret
from launch.transport import DryTransport, Transport
from launch.voice import Supposed, Voice
from minimind.catalog import CATALOG
from minimind.rundir import RunSpec, new_run_id


@dataclass(frozen=True, kw_only=True)
class Request:
    """What the user asked for; ``nproc`` None is one rank a GPU, or one."""

    stage: str
    flags: tuple[str, ...]
    nproc: int | None
    name: str | None
    secrets: Mapping[str, Secret] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Laptop:
    """Who asks, and from where."""

    home: Path
    cwd: Path
    owner: str
    pid: int
    commit: str | None
    dirty_hash: str | None


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Everything that a start will do."""

    spec: RunSpec
    run_dir: str
    facts: facts.HostFacts
    executor: Executor
    inputs: inputs.Inputs
    provision: environment.Provision
    laptop: Laptop
    secrets: Mapping[str, Secret]


def look(transport: Transport) -> facts.HostFacts:
    """Probe the host; raises as :func:`scout` does."""
    return scout(transport, ())[0]


def scout(transport: Transport, paths: Sequence[str]) -> tuple[facts.HostFacts, dict[str, facts.There]]:
    """Probe the host and look for paths on it, in one command.

    Raises:
        LaunchError: HOST_NOT_READY when its shell does not answer as a shell.
    """
    host = transport.host
    result = transport.read(facts.probe(host.root, host.python, paths), check=False)
    text = result.stdout.decode("utf-8", "replace")
    try:
        return facts.parse(text), facts.parse_paths(text, paths)
    except ValueError as error:
        raise LaunchError(
            f"{host.name} could not be looked at",
            why=result.stderr.decode(errors="replace").strip()[-400:] or str(error),
            remedy=f"log in by hand and see whether `sh` works there: ssh {host.ssh or host.name}",
            code=Exit.HOST_NOT_READY,
        ) from error


@dataclass(frozen=True, kw_only=True)
class Ends:
    """Both ends of a start: a host, and this machine; dry ones write down what they would do."""

    host: Transport
    laptop: Transport
    inventory: Inventory
    here: environment.Here

    def visit(self, paths: Sequence[str], *wanted: Environment) -> tuple[environment.Site, dict[str, facts.There]]:
        """Look at the host, at paths on it, and at what it has of this laptop's and of wanted environments."""
        markers = environment.markers(self.here, *wanted)
        found, there = scout(self.host, [*paths, *markers])
        site = environment.Site(
            here=self.here,
            transport=self.host,
            laptop=self.laptop,
            host=self.host.host,
            inventory=self.inventory,
            facts=found,
            present={path for path in markers if path in there},
        )
        return site, there


def plan(request: Request, ends: Ends, laptop: Laptop) -> Plan:
    """Find out what the start needs; changes nothing anywhere.

    Raises:
        LaunchError: INVALID when an input is on neither side, HOST_NOT_READY when the host cannot train.
    """
    info, host = CATALOG[request.stage], ends.host.host
    asked = flags.value_of(request.flags, "save_dir") or flags.value_of(request.flags, "out_dir") or "out"
    out = asked if asked.startswith("~/") else str(PurePosixPath("@") / asked)
    search = inputs.Search(
        info, _without(request.flags), inputs.Places(host=host.name, home=laptop.home, cwd=laptop.cwd, out=out)
    )
    site, there = ends.visit(search.questions)
    found, executor = site.facts, choose(host, site.facts)
    brought = search.settle(found, there, in_place=host.ssh is None and executor.name == "venv")
    provision = environment.provide(executor.name, site)
    now = time.gmtime(found.now)
    run_id = new_run_id(request.stage, now_utc=time.strftime("%Y%m%d-%H%M%S", now))
    gpus = min(len(found.gpus), host.gpus) if host.gpus is not None else len(found.gpus)
    spec = RunSpec(
        run_id=run_id,
        stage=request.stage,
        flags=["--save_dir", found.expand(out), *brought.flags],
        nproc=request.nproc or (1 if request.stage == "tokenizer" else max(1, gpus)),
        executor=executor.name,
        name=request.name,
        image_digest=provision.environment.image_id,
        lock_hash=provision.environment.lock_hash,
        code_hash=provision.environment.code_hash,
        commit=laptop.commit,
        dirty_hash=laptop.dirty_hash,
        inputs=brought.records(),
        secret_names=sorted(request.secrets),
        created_at=time.strftime("%Y-%m-%dT%H:%M:%SZ", now),
        created_by=laptop.owner,
    )
    return Plan(
        spec=spec,
        run_dir=f"{found.root}/runs/{run_id}",
        facts=found,
        executor=executor,
        inputs=brought,
        provision=provision,
        laptop=laptop,
        secrets=request.secrets,
    )


def peek(plan: Plan, transport: Transport) -> Mapping[str, Any]:
    """What the host says of the run without writing; empty while it lacks something that the run needs."""
    if plan.inputs.pushes or plan.provision.tasks:
        return {}
    environment = plan.provision.environment
    root = plan.facts.root
    first = attempt_of(plan.spec, plan.run_dir, root, environment, number=1, nproc=None, hand={}, memory=None)
    return forecast.peek(plan.executor, transport, plan.facts, first, plan.spec)


def _without(words: tuple[str, ...]) -> list[str]:
    return flags.without(flags.without(words, "save_dir"), "out_dir")


def carry_out(plan: Plan, transport: Transport, laptop: Transport, voice: Voice) -> Handle:
    """Bring what is missing, have the run planned, claim the name, write the run directory, start.

    Raises:
        LaunchError: what could not be done or is certain to fail; a run directory made by then stays, PREPARED.
    """
    voice = Supposed(voice) if isinstance(transport, DryTransport) else voice
    inputs.push(plan.inputs.files, transport, voice)
    provided = plan.provision.carried_out(transport, laptop, voice)
    root, spec, who = plan.facts.root, replace(plan.spec, image_digest=provided.image_id), plan.laptop
    first = attempt_of(
        spec,
        plan.run_dir,
        root,
        provided,
        number=1,
        nproc=None,
        new=True,
        hand=plan.secrets,
        memory=plan.facts.memory_dir,
    )
    forecast.ask(plan.executor, transport, plan.facts, first, spec, voice)
    number = spec.name and names.claim(transport, root, spec.name, spec.run_id, owner=who.owner, pid=who.pid)
    try:
        return plan.executor.start(transport, plan.facts, first)
    except LaunchError:
        if spec.name and number:
            names.release(transport, root, spec.name, after=number, owner=who.owner, pid=who.pid)
        raise


def attempt_of(
    spec: RunSpec,
    run_dir: str,
    root: str,
    provided: Environment,
    *,
    number: int,
    nproc: int | None,
    hand: Mapping[str, Secret],
    memory: str | None,
    new: bool = False,
) -> Attempt:
    """One attempt of a run as its spec describes it, handed its secrets; the spec of a new run is still to be written.

    ``memory`` is a folder in memory that the host has for them.
    """
    folder = f"{memory or run_dir}/minimind-{secrets.token_hex(16)}"
    return Attempt(
        run_id=spec.run_id,
        run_dir=run_dir,
        root=root,
        number=number,
        spec_json=spec.to_json() if new else None,
        spec_nproc=spec.nproc,
        nproc=nproc,
        environment=provided,
        networked=flags.is_on(spec.flags, "use_wandb"),
        readonly=tuple(item["path"] for item in spec.inputs if not str(item["path"]).startswith(f"{root}/")),
        secrets=hand,
        secrets_file=f"{folder}/secrets.json" if hand else None,
    )


def code_version(package: Path, environ: Mapping[str, str]) -> tuple[str | None, str | None]:
    """The commit of the trainers' code and a hash of what differs from it; None where there is no git checkout."""

    def git(*words: str) -> bytes | None:
        command = ["git", "-C", str(package), *words]
        quiet = {**environ, "GIT_OPTIONAL_LOCKS": "0"}
        try:
            done = subprocess.run(command, capture_output=True, env=quiet, stdin=subprocess.DEVNULL, check=False)
        except OSError:
            return None
        return done.stdout if done.returncode == 0 else None

    commit = git("rev-parse", "HEAD")
    if commit is None or git("ls-files", "--error-unmatch", "__init__.py") is None:
        return None, None
    changes = git("diff", "HEAD", "--", ".") or b""
    return commit.decode().strip(), hashlib.sha256(changes).hexdigest() if changes else None
