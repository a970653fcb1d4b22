"""A virtual environment on a host, made once from a lock by envs/install.py, which the launcher sends along."""

from __future__ import annotations

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
CANNOT_INSTALL = 5
POLL_S = 0.5


@dataclass(frozen=True, kw_only=True)
class MakeVenv:
    """Make the environment on the host; from wheels of the laptop where the host has no index to ask."""

    folder: str
    lock: Path
    facts: HostFacts
    envs: Path
    cache: Path

    @property
    def _files(self) -> str:
        return f"{self.folder}.from"

    def do(self, transport: Transport, laptop: Transport, voice: Voice) -> None:
        """See :class:`launch.environment.task.Task`."""
        wheel = _pip_wheel()
        for path in (self.envs / INSTALLER, self.lock, *((wheel,) if wheel else ())):
            transport.send(path, f"{self._files}/{path.name}")
        voice.say(f"making the environment of {self.lock.name} on {transport.host.name}, once; this takes minutes")
        code, said = self._install(transport, voice, wheel, wheels=None)
        if code == CANNOT_INSTALL and self._alike():
            voice.say(f"{transport.host.name} cannot install from an index; sending wheels from here")
            self._send_wheels(transport, voice)
            code, said = self._install(transport, voice, wheel, wheels=f"{self._files}/wheels")
        if code:
            raise LaunchError(
                f"the environment could not be made on {transport.host.name}",
                why=said or f"the installer ended with code {code}",
                remedy=f"correct that, or set python = PATH for {transport.host.name}, an interpreter that has torch",
                code=Exit.HOST_NOT_READY,
            )

    def _install(
        self, transport: Transport, voice: Voice, wheel: Path | None, *, wheels: str | None
    ) -> tuple[int, str]:
        log = f"{self._files}/log-{secrets.token_hex(4)}.txt"  # another launcher may be installing there too
        argv = install.venv(
            python=self.facts.python or "python3",
            script=f"{self._files}/{INSTALLER}",
            folder=self.folder,
            lock=f"{self._files}/{self.lock.name}",
            log=log,
            pip_wheel=f"{self._files}/{wheel.name}" if wheel else None,
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

    def _send_wheels(self, transport: Transport, voice: Voice) -> None:
        folder = self.cache / "wheels" / Path(self.folder).name
        folder.parent.mkdir(parents=True, exist_ok=True)
        command = [sys.executable, str(self.envs / INSTALLER), "--download", str(folder), "--lock", str(self.lock)]
        collected = subprocess.run(command, stdin=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, check=False)
        if collected.returncode:
            raise LaunchError(
                f"neither {transport.host.name} nor this machine can get the packages of {self.lock.name}",
                why="\n".join(collected.stderr.strip().splitlines()[-4:]),
                remedy="give one of the two a network, or set PIP_FIND_LINKS to a folder of wheels",
                code=Exit.HOST_NOT_READY,
            )
        for path in sorted(p for p in folder.iterdir() if p.suffix == ".whl"):
            with voice.moving(f"{path.name} -> {transport.host.name}", path.stat().st_size) as moved:
                transport.send(path, f"{self._files}/wheels/{path.name}", on_bytes=moved)


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
    if not site.facts.python_ready:
        version = ".".join(map(str, site.facts.python_version or ())) or "none"
        raise LaunchError(
            f"{site.host.name} has no Python 3.11 or newer",
            why=f"the newest found there is {version}",
            remedy=f"install one there (apt install python3.11, or conda), or set python = PATH for {site.host.name}",
            code=Exit.HOST_NOT_READY,
        )
    task = MakeVenv(folder=folder, lock=lock, facts=site.facts, envs=site.here.envs, cache=site.here.cache)
    return f"{folder}/bin/python", lock_hash, (task,)


def recall(site: Site, lock_hash: str | None) -> str:
    """The interpreter of an earlier run.

    Raises:
        LaunchError: HOST_NOT_READY when the host no longer has it.
    """
    if lock_hash is None:
        if ready := _as_it_is(site):
            return ready
        why = "it used an interpreter as it is, and none is configured now"
    else:
        folder = _folder(site, lock_hash)
        if marker(lock_hash) in site.present:
            return f"{folder}/bin/python"
        why = f"{folder} is not there"
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


def _pip_wheel() -> Path | None:
    spec = importlib.util.find_spec("ensurepip")
    bundled = Path(spec.origin).parent / "_bundled" if spec and spec.origin else None
    return next(iter(sorted(bundled.glob("pip-*.whl"))), None) if bundled else None
