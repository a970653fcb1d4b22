"""The trainers' source, on its own: a new line of code must not need a new environment."""

from __future__ import annotations

import io
import tarfile
from dataclasses import dataclass
from pathlib import Path

from launch.argv import install
from launch.environment.task import Site, Task
from launch.errors import Exit, LaunchError
from launch.transport import Transport
from launch.voice import Voice
from minimind.durable import tree_hash


@dataclass(frozen=True, kw_only=True)
class SendCode:
    """Put the package into a folder named by its hash."""

    folder: str
    package: Path

    def do(self, transport: Transport, laptop: Transport, voice: Voice) -> None:
        """See :class:`launch.environment.task.Task`."""
        archive = pack(self.package)
        voice.say(f"sending the trainers' code to {transport.host.name} ({len(archive) >> 10} KiB)")
        transport.run(install.unpack(self.folder), stdin=archive)


def marker(code_hash: str) -> str:
    """What is on a host that has this code; ``@/`` stands for its root."""
    return f"@/code/{code_hash[:16]}"


def find(site: Site) -> tuple[str, str, tuple[Task, ...]]:
    """PYTHONPATH on the host, the code's hash, and what has to be done first."""
    package, code_hash = site.here.package, tree_hash(site.here.package)
    if site.host.ssh is None:
        return str(package.parent), code_hash, ()
    folder = site.facts.expand(marker(code_hash))
    there = marker(code_hash) in site.present
    return folder, code_hash, () if there else (SendCode(folder=folder, package=package),)


def recall(site: Site, code_hash: str | None) -> str:
    """PYTHONPATH of an earlier run's code.

    Raises:
        LaunchError: HOST_NOT_READY when the host no longer has it.
    """
    if site.host.ssh is None:
        return str(site.here.package.parent)
    folder = site.facts.expand(marker(code_hash or ""))
    if code_hash and marker(code_hash) in site.present:
        return folder
    raise LaunchError(
        f"the code that this run was started with is no longer on {site.host.name}",
        why=f"{folder} is not there",
        remedy="start a new run from its weights: launch run … -- --from_weight NAME",
        code=Exit.HOST_NOT_READY,
    )


def pack(package: Path) -> bytes:
    """The package's Python files as a tar, the same bytes for the same code."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for path in sorted(package.rglob("*.py"), key=lambda p: p.relative_to(package).as_posix()):
            data = path.read_bytes()
            member = tarfile.TarInfo(f"{package.name}/{path.relative_to(package).as_posix()}")
            member.size, member.mode = len(data), 0o600
            tar.addfile(member, io.BytesIO(data))
    return buffer.getvalue()
