"""What every executor is given and must answer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from launch import secrets
from launch.argv import handover, supervise
from launch.facts import HostFacts
from launch.secrets import Secret
from launch.transport import Transport

Handle = Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class Environment:
    """What a run is trained with: an interpreter and a folder with the code (venv), or an image (docker)."""

    python: str | None = None
    pythonpath: str | None = None
    image_id: str | None = None
    lock_hash: str | None = None
    code_hash: str | None = None


@dataclass(frozen=True, kw_only=True)
class Attempt:
    """One start of one run; paths are absolute on the host.

    ``spec_json`` is the spec of a run that has none there yet: it is written first. ``nproc`` is given where it differs
    from the spec's; ``readonly`` are files outside ``root`` that the run reads; ``secrets`` go into ``secrets_file``.
    """

    run_id: str
    run_dir: str
    root: str
    number: int
    spec_nproc: int
    nproc: int | None
    environment: Environment
    spec_json: bytes | None = None
    networked: bool = False
    readonly: tuple[str, ...] = ()
    secrets: Mapping[str, Secret] = field(default_factory=dict)
    secrets_file: str | None = None

    def around(self, argv: Sequence[str], *, container: str = "") -> tuple[list[str], bytes]:
        """The command that starts it, with what has to be on the host before, and the bytes of its stdin."""
        stdin = b""
        if self.spec_json is not None:
            argv = supervise.after_spec(argv, run_dir=self.run_dir, length_bytes=len(self.spec_json))
            stdin = self.spec_json
        if self.secrets_file is not None:
            handed = secrets.payload(self.secrets)
            argv = handover.with_secrets(
                argv,
                file=self.secrets_file,
                length_bytes=len(handed),
                container=container,
                started=f"{self.run_dir}/attempts/{self.number}",
            )
            stdin = handed + stdin
        return list(argv), stdin


class Executor(Protocol):
    """Starts runs on one host and tells which still live. Everything else about a run is in its directory."""

    name: str

    def start(self, transport: Transport, facts: HostFacts, attempt: Attempt) -> Handle:
        """Start the supervisor, so that it outlives this connection; handle.json is written when this returns.

        Raises:
            LaunchError: REFUSED when the run is alive already, HOST_NOT_READY when it cannot be started.
        """

    def status(self, transport: Transport, handles: Mapping[str, Handle]) -> dict[str, bool | None]:
        """Per run id whether it lives, in one command; None where that cannot be known."""

    def stop(self, transport: Transport, run_id: str, handle: Handle) -> None:
        """End it at once, saving nothing. Ended already is no error."""

    def logs(self, transport: Transport, run_id: str, handle: Handle) -> str:
        """The last words outside the run directory; empty where the executor keeps none."""
