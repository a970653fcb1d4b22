"""A virtual environment on a host, made once from a lock by envs/install.py, which the launcher sends along."""

from __future__ import annotations

import contextlib
import importlib.util
import platform
import secrets
import subprocess
import sys
import threading
from dataclasses import dataclass
from pathlib import Path

from launch.argv import install
from launch.environment.task import Site, Task
from launch.errors import Exit, LaunchError, printable
from launch.facts import HostFacts
from launch.transport import Transport
from launch.voice import Voice
from minimind.durable import sha256_file

INSTALLER = "install.py"
CANNOT_INSTALL, DISK_FULL = 5, 28
"""How the installer ends when it finds no packages, and when it finds no space."""
POLL_S = 0.5
ROOM_BYTES = {"cpu.lock": 1_000_000_000, "cuda.lock": 5_000_000_000}
"""What an environment takes on the disk at least; wheels on their way come on top."""


@dataclass(frozen=True, kw_only=True)
class MakeVenv:
    """Make the environment on the host; from wheels of the laptop where the host has no index to ask."""

    folder: str
    lock: Path
    facts: HostFacts
    envs: Path
    cache: Path

    def do(self, transport: Transport, laptop: Transport, voice: Voice) -> None:
        """See :class:`launch.environment.task.Task`."""
        self._check_room(transport.host.name, 0)
        files = f"{self.folder}.from-{secrets.token_hex(4)}"  # another launcher may be bringing the same
        try:
            code, said = self._bring(transport, voice, files)
        except LaunchError:
            with contextlib.suppress(LaunchError):  # the link itself may have gone
                transport.run(install.drop(files), check=False)
            raise
        transport.run(install.drop(files), check=False)
        name, folder = transport.host.name, self.folder
        if code == DISK_FULL:
            reasons = [line.removeprefix("  why: ") for line in said.splitlines() if line.startswith("  why: ")]
            raise LaunchError(
                f"a disk of {name} became full while the environment was made",
                why=printable(reasons[-1] if reasons else f"no space was left for {folder}"),
                remedy=_more_room(name),
                code=Exit.HOST_NOT_READY,
            )
        if code:
            raise LaunchError(
                f"the environment could not be made on {name}",
                why=said or f"the installer ended with code {code}",
                remedy=f"correct that, or set python = PATH for {name}, an interpreter that has torch",
                code=Exit.HOST_NOT_READY,
            )

    def _bring(self, transport: Transport, voice: Voice, files: str) -> tuple[int, str]:
        wheel = _pip_wheel()
        for path in (self.envs / INSTALLER, self.lock, *((wheel,) if wheel else ())):
            transport.send(path, f"{files}/{path.name}")
        voice.say(f"making the environment of {self.lock.name} on {transport.host.name}, once; this takes minutes")
        code, said = self._install(transport, voice, files, wheel, wheels=None)
        if code == CANNOT_INSTALL and self._alike():
            voice.say(f"{transport.host.name} cannot install from an index; sending wheels from here")
            self._send_wheels(transport, voice, f"{files}/wheels")
            code, said = self._install(transport, voice, files, wheel, wheels=f"{files}/wheels")
        return code, said

    def _check_room(self, name: str, wheels_bytes: int) -> None:
        needed_bytes, free_bytes = ROOM_BYTES.get(self.lock.name, 0) + wheels_bytes, self.facts.free_bytes
        if free_bytes is not None and free_bytes < needed_bytes:
            with_wheels = (
                f" with the {wheels_bytes / 1e9:.2f} GB of wheels that it is made from" if wheels_bytes else ""
            )
            raise LaunchError(
                f"{name} has {free_bytes / 1e9:.2f} GB free, the environment needs {needed_bytes / 1e9:.2f} GB",
                why=f"the packages of {self.lock.name} are put below {self.facts.root}{with_wheels}; none was sent yet",
                remedy=_more_room(name),
                code=Exit.HOST_NOT_READY,
            )

    def _install(
        self, transport: Transport, voice: Voice, files: str, wheel: Path | None, *, wheels: str | None
    ) -> tuple[int, str]:
        log = f"{files}/log-{secrets.token_hex(4)}.txt"
        argv = install.venv(
            python=self.facts.python or "python3",
            script=f"{files}/{INSTALLER}",
            folder=self.folder,
            lock=f"{files}/{self.lock.name}",
            log=log,
            pip_wheel=f"{files}/{wheel.name}" if wheel else None,
            wheels=wheels,
        )
        done: list[tuple[int, str] | LaunchError] = []

        def work() -> None:
            try:
                result = transport.run(argv, check=False)
                done.append((result.code, result.stderr.decode(errors="replace").strip()))
            except LaunchError as error:
                done.append(error)

        thread = threading.Thread(target=work, daemon=True)
        thread.start()
        offset = 0
        while thread.is_alive():
            thread.join(POLL_S)
            new = transport.read(install.tail(log, offset=offset)).stdout
            whole = new[: new.rfind(b"\n") + 1]
            offset += len(whole)
            for line in whole.decode(errors="replace").splitlines():
                voice.say(f"  {printable(line)}")
        if isinstance(done[0], LaunchError):
            raise done[0]
        return done[0]

    def _alike(self) -> bool:
        here = (platform.system(), platform.machine(), sys.version_info[:2])
        return here == (self.facts.system, self.facts.arch, (self.facts.python_version or (0, 0))[:2])

    def _send_wheels(self, transport: Transport, voice: Voice, there: str) -> None:
        folder = self.cache / "wheels" / Path(self.folder).name
        folder.parent.mkdir(parents=True, exist_ok=True)
        command = [sys.executable, str(self.envs / INSTALLER), "--download", str(folder), "--lock", str(self.lock)]
        collected = subprocess.run(command, stdin=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, check=False)
        said = "\n".join(collected.stderr.strip().splitlines()[-4:])
        if collected.returncode == DISK_FULL:
            raise LaunchError(
                "a disk of this machine became full while wheels were collected",
                why=said,
                remedy="free space here, or set XDG_CACHE_HOME to a folder on a larger disk",
                code=Exit.HOST_NOT_READY,
            )
        if collected.returncode:
            raise LaunchError(
                f"neither {transport.host.name} nor this machine can get the packages of {self.lock.name}",
                why=said,
                remedy="give one of the two a network, or set PIP_FIND_LINKS to a folder of wheels",
                code=Exit.HOST_NOT_READY,
            )
        sizes = {path: path.stat().st_size for path in sorted(folder.glob("*.whl"))}
        self._check_room(transport.host.name, sum(sizes.values()))
        for path, length_bytes in sizes.items():
            with voice.moving(f"{path.name} -> {transport.host.name}", length_bytes) as moved:
                transport.send(path, f"{there}/{path.name}", on_bytes=moved)


def find(site: Site) -> tuple[str, str | None, tuple[Task, ...]]:
    """The interpreter on the host, the lock's hash (None for an interpreter used as it is), what has to be done first.

    Raises:
        LaunchError: HOST_NOT_READY when there is no Python to begin with.
    """
    if ready := _as_it_is(site):
        return ready, None, ()
    cpu, *others = locks(site.here.envs)
    lock = others[0] if site.facts.gpus and others else cpu
    lock_hash = sha256_file(lock)
    folder = _folder(site, lock_hash)
    if marker(lock_hash) in site.present:
        return f"{folder}/bin/python", lock_hash, ()
    return f"{folder}/bin/python", lock_hash, (_made(site, folder, lock),)


def _made(site: Site, folder: str, lock: Path) -> MakeVenv:
    if not site.facts.python_ready:
        version = ".".join(map(str, site.facts.python_version or ())) or "none"
        raise LaunchError(
            f"{site.host.name} has no Python 3.11 or newer",
            why=f"the newest found there is {version}",
            remedy=f"install one there (apt install python3.11, or conda), or set python = PATH for {site.host.name}",
            code=Exit.HOST_NOT_READY,
        )
    return MakeVenv(folder=folder, lock=lock, facts=site.facts, envs=site.here.envs, cache=site.here.cache)


def recall(site: Site, lock_hash: str | None) -> tuple[str, tuple[Task, ...]]:
    """The interpreter of an earlier run, and what has to be done first: it is made again from the same lock.

    Raises:
        LaunchError: HOST_NOT_READY when the host no longer has it, and this version has another lock.
    """
    if lock_hash is None:
        if ready := _as_it_is(site):
            return ready, ()
        why = "it used an interpreter as it is, and none is configured now"
    else:
        folder = _folder(site, lock_hash)
        if marker(lock_hash) in site.present:
            return f"{folder}/bin/python", ()
        if same := [lock for lock in locks(site.here.envs) if sha256_file(lock) == lock_hash]:
            return f"{folder}/bin/python", (_made(site, folder, same[0]),)
        why = f"{folder} is not there or does not start, and this version of launch has another lock"
    raise LaunchError(
        f"the environment that this run was started with is no longer on {site.host.name}",
        why=why,
        remedy="start a new run from its weights: launch run … -- --from_weight NAME",
        code=Exit.HOST_NOT_READY,
    )


def locks(envs: Path) -> list[Path]:
    """cpu.lock, and cuda.lock where there is one."""
    return [envs / "cpu.lock", *(path for path in (envs / "cuda.lock",) if path.is_file())]


def marker(lock_hash: str) -> str:
    """What is on a host that has this environment, written last; ``@/`` stands for its root.

    The probe believes it only while the interpreter beside it starts (:func:`launch.facts.probe`).
    ``@python`` is the kind of interpreter that it was made with: hosts that share a disk need not have the same.
    """
    return f"@/env/{lock_hash[:16]}-@python/.complete"


def _folder(site: Site, lock_hash: str) -> str:
    return site.facts.expand(marker(lock_hash)).removesuffix("/.complete")


def _as_it_is(site: Site) -> str | None:
    if site.host.python:
        if site.facts.python and site.facts.python_ready:
            return site.facts.python
        raise LaunchError(
            f"{site.host.python} is no usable Python on {site.host.name}",
            why="it does not run there, or is older than 3.11",
            remedy=f"correct python = {site.host.python!r} for {site.host.name}, or remove it to have one made",
            code=Exit.HOST_NOT_READY,
        )
    if site.host.ssh is None and importlib.util.find_spec("torch"):
        return sys.executable
    return None


def _more_room(name: str) -> str:
    return f"launch env prune {name} shows what can go; else free space on {name}, or set its root to a larger disk"


def _pip_wheel() -> Path | None:
    spec = importlib.util.find_spec("ensurepip")
    bundled = Path(spec.origin).parent / "_bundled" if spec and spec.origin else None
    return next(iter(sorted(bundled.glob("pip-*.whl"))), None) if bundled else None
