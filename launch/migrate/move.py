"""What the steps of a move share: two hosts, this laptop, what was asked for, and what has been done."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

from launch import environment
from launch.argv import migrate as argv
from launch.errors import Exit, LaunchError, printable
from launch.executors import Environment, choose
from launch.facts import HostFacts
from launch.inventory import Host, Inventory
from launch.migrate import cargo
from launch.migrate.journal import Journal
from launch.migrate.upload import Upload
from launch.runs.observe import Run
from launch.runs.start import Ends, Laptop, Request
from launch.secrets import Secret
from launch.sync.listing import RemoteFile, hashed, list_again
from launch.transport import Transport, host_path
from launch.voice import Voice
from minimind.durable import sha256_file
from minimind.rundir import RunSpec, State


@dataclass(frozen=True, kw_only=True)
class Asked:
    """What the user asked for. ``stage`` None goes on with the interrupted run; ``nproc`` None is one rank a GPU."""

    source: Host
    target: Host
    stage: str | None
    flags: tuple[str, ...]
    nproc: int | None
    wait: bool

    def to_dict(self) -> dict[str, Any]:
        """What must be the same when a move is taken up again."""
        return {
            "from": f"{self.source.name} {self.source.root}",
            "to": f"{self.target.name} {self.target.root}",
            "from_ssh": self.source.ssh,
            "to_ssh": self.target.ssh,
            "run": self.stage,
            "flags": list(self.flags),
            "nproc": self.nproc,
            "wait": self.wait,
        }


class Move:
    """Hosts are connected to when a step needs them: after ``save`` the source may be gone."""

    def __init__(
        self,
        asked: Asked,
        *,
        inventory: Inventory,
        connect: Callable[[Host], Transport],
        ends: Callable[[Transport], Ends],
        laptop: Laptop,
        request: Callable[[Host, str, tuple[str, ...], int | None], Request],
        secrets: Callable[[Sequence[str]], Mapping[str, Secret]],
        voice: Voice,
        journal: Journal,
        now_utc: Callable[[], str],
    ) -> None:
        self.asked, self.inventory, self.laptop, self.voice, self.journal = asked, inventory, laptop, voice, journal
        self.request, self.secrets, self.now_utc = request, secrets, now_utc
        self._connect, self._ends = connect, ends

    @cached_property
    def source(self) -> Transport:
        """The host to leave."""
        return self._connect(self.asked.source)

    @cached_property
    def target(self) -> Transport:
        """The host to go to."""
        return self._connect(self.asked.target)

    @cached_property
    def ends(self) -> Ends:
        """The target and this machine."""
        return self._ends(self.target)

    def ends_of_source(self) -> Ends:
        """The source and this machine."""
        return self._ends(self.source)

    @cached_property
    def source_root(self) -> str:
        """Absolute; as it was found when the move began."""
        told = self.journal.facts("check").get("source_root")
        return str(told) if told else host_path(self.source, self.asked.source.root)

    @cached_property
    def target_root(self) -> str:
        """Absolute."""
        return host_path(self.target, self.asked.target.root)

    @property
    def home(self) -> Path:
        """Where the copies are."""
        return self.inventory.home

    @cached_property
    def source_is_home(self) -> bool:
        """Whether what is to come home lies there already: ``local`` may have the home folder as its root."""
        return self.asked.source.ssh is None and Path(self.source_root).resolve() == self.home.resolve()

    @cached_property
    def target_is_home(self) -> bool:
        """Whether the target's root is the folder of the copies."""
        return self.asked.target.ssh is None and Path(self.target_root).resolve() == self.home.resolve()

    @cached_property
    def upload(self) -> Upload:
        """Names on the target."""
        return Upload(self.target, self.target_root, self.voice)

    def site(self) -> environment.Site:
        """The target as it is now."""
        return self.ends.visit(())[0]

    def ranks(self, facts: HostFacts, spec: RunSpec | None) -> int:
        """How many ranks there will be: those asked for, else one a GPU, else as many as the run had.

        Raises:
            LaunchError: HOST_NOT_READY when the target has fewer GPUs.
        """
        host = self.asked.target
        gpus = min(len(facts.gpus), host.gpus) if host.gpus is not None else len(facts.gpus)
        if gpus and self.asked.nproc and self.asked.nproc > gpus:
            raise LaunchError(
                f"{host.name} has {gpus} GPU(s) to use, {self.asked.nproc} ranks were asked for",
                why="each rank needs a GPU of its own",
                remedy=f"say --nproc {gpus}",
                code=Exit.HOST_NOT_READY,
            )
        return self.asked.nproc or gpus or (spec.nproc if spec else 1)

    def rebased(self, spec: RunSpec, provided: Environment, executor: str) -> RunSpec:
        """A moved run's spec as the target is to have it."""
        return cargo.at_home_on(
            cargo.rebase(spec, self.source_root, self.target_root).spec,
            executor=executor,
            environment=provided,
            commit=self.laptop.commit,
            dirty_hash=self.laptop.dirty_hash,
        )

    def provided(self, site: environment.Site) -> tuple[Environment, str]:
        """What the target trains with, and the name of its executor."""
        executor = choose(self.asked.target, site.facts).name
        return environment.provide(executor, site).environment, executor


class Step(ABC):
    """One part of a move. Run again after it was cut off, it takes up what there is and ends the same."""

    name: ClassVar[str]
    what: ClassVar[str]
    spares: ClassVar[tuple[str, ...]] = ()
    """Later steps that stay done when this one has to be done again."""

    def __init__(self, move: Move) -> None:
        self._move = move

    def done(self) -> bool:
        """Whether nothing is left to do; what was written down is believed, unless a step can look cheaply."""
        return self.name in self._move.journal

    @abstractmethod
    def run(self) -> Mapping[str, Any]:
        """Do it; returns what is worth writing down.

        Raises:
            LaunchError: what stands in the way.
        """


@dataclass(frozen=True, kw_only=True)
class Subject:
    """What is tried and then goes on: a spec as the target has it, and its ranks."""

    spec: RunSpec
    nproc: int
    environment: Environment
    run_dir: str


def unfinished(runs: Sequence[Run], files: Sequence[RemoteFile]) -> list[Run]:
    """The runs that can go on: alive, or ended before their end with a checkpoint among the files; oldest first."""
    saved = {file.path.split("/")[1] for file in files if file.checkpoint}
    return [
        run
        for run in runs
        if run.state.state not in (State.SUCCEEDED, State.PREPARED)
        and (run.run_id in saved or not run.state.state.ended)
    ]


def goes_on(runs: Sequence[Run], moved: Sequence[str], stopped: Sequence[str]) -> str | None:
    """The run that goes on by itself: the newest one that the move stopped, else the newest of all if it is moved."""
    if mine := [run_id for run_id in stopped if run_id in moved]:
        return max(mine)
    newest = max((run.run_id for run in runs), default=None)
    return newest if newest in moved else None


@dataclass(frozen=True, kw_only=True)
class Data:
    """A file that is not in out/ or runs/: its name on the target, and its content on the source and here."""

    file: RemoteFile
    target: str
    local: Path | None

    def item(self, spool: Path) -> cargo.Item:
        """What to send."""
        local = self.local or spool / self.file.sha256
        return cargo.Item(target=self.target, sha256=self.file.sha256, length_bytes=self.file.length_bytes, local=local)


def data_of(move: Move, runs: Sequence[Run]) -> tuple[list[Data], list[str]]:
    """Data sets and what the runs read, hashed on the source and looked for here; and what had to be left there.

    ``file.path`` is below ``/``. Raises LaunchError when the host cannot be asked.
    """
    source, root = move.source, move.source_root
    targets = {f"{root}/dataset/{name}": f"{move.target_root}/dataset/{name}" for name in _data_sets(source, root)}
    for run in runs:
        spec = cargo.spec_of(json.dumps(dict(run.spec)).encode(), run.run_id)  # as it is asked for before the send
        targets |= {read.source: read.target for read in cargo.rebase(spec, root, move.target_root).reads}
    real = _real_paths(source, list(targets))
    listed = list_again(source, "/", [path.lstrip("/") for path in dict.fromkeys(real)])
    files = {f"/{file.path}": file for file in hashed(source, "/", listed.values())}
    found, left = [], []
    for path, lies_at in zip(targets, real, strict=True):
        file = files.get(lies_at)
        if file is None:
            left.append(path)
            continue
        here = move.home / path.removeprefix(f"{root}/") if path.startswith(f"{root}/") else None
        here = Path(lies_at) if move.asked.source.ssh is None else here
        same = here is not None and here.is_file() and here.stat().st_size == file.length_bytes
        local = here if here is not None and same and sha256_file(here) == file.sha256 else None
        found.append(Data(file=file, target=targets[path], local=local))
    return found, left


def _data_sets(source: Transport, root: str) -> list[str]:
    """Names below dataset/; tokenised data, a folder beside each, is made again."""
    told = source.read(argv.data(root)).stdout.decode("utf-8", "surrogateescape").split("\0")
    return [name for name in told if name.endswith(".jsonl") and "/" not in name and printable(name) == name]


def _real_paths(source: Transport, paths: Sequence[str]) -> list[str]:
    """Data often lies on another disk, behind a link; nothing else is followed."""
    lines = "".join(f"{path}\n" for path in paths)
    told = source.read(argv.real_paths(), stdin=lines.encode()).stdout.decode("utf-8", "surrogateescape").split("\0")
    real = told[:-1] if len(told) == len(paths) + 1 else paths
    return [there if "\n" not in there else path for path, there in zip(paths, real, strict=True)]
