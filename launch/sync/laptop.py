"""Pushing what the laptop has and a host lacks: data, weights, tokenizer."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from launch.errors import Exit, LaunchError
from launch.sync.listing import hashes
from launch.transport import Transport, host_path
from launch.voice import Voice
from minimind.durable import sha256_file

PATTERNS = ("dataset/*.jsonl", "out/*.pth", "out/lora/*.pth", "out/tokenizer/*")


@dataclass(frozen=True, kw_only=True)
class Push:
    """One file of the laptop and its absolute path on the host; ``state`` is how the host's file compares."""

    local: Path
    remote: str
    sha256: str
    length_bytes: int
    state: str  # absent, same or different

    def to_dict(self) -> dict[str, object]:
        """For --json."""
        return {
            "path": str(self.local),
            "to": self.remote,
            "sha256": self.sha256,
            "bytes": self.length_bytes,
            "host_had": self.state,
        }


def compare(transport: Transport, files: Sequence[tuple[Path, str]]) -> list[Push]:
    """Hash (local file, absolute remote path) pairs on both sides; changes nothing.

    Raises:
        LaunchError: INVALID when a local file cannot be read.
    """
    if odd := [str(local) for local, remote in files if "\n" in remote]:
        raise LaunchError(
            f"{odd[0]!r} cannot be sent",
            why="there is a newline in its name",
            remedy="rename it",
            code=Exit.INVALID,
        )
    theirs = hashes(transport, "/", [("all", remote) for _, remote in files])
    pushes = []
    for (local, remote), there in zip(files, theirs, strict=True):
        try:
            ours, length_bytes = sha256_file(local), local.stat().st_size
        except OSError as error:
            raise LaunchError(
                f"{local} cannot be read",
                why=error.strerror or str(error),
                remedy="make it readable, or move it away",
                code=Exit.INVALID,
            ) from error
        state = "absent" if there is None else "same" if there == ours else "different"
        pushes.append(Push(local=local, remote=remote, sha256=ours, length_bytes=length_bytes, state=state))
    return pushes


def sync_in(transport: Transport, home: Path, *, voice: Voice, overwrite: bool = False) -> list[Push]:
    """Send the home folder's data, weights and tokenizer that the host lacks, each verified there before it is named.

    Raises:
        LaunchError: REFUSED with the list, and nothing sent, when the host has other files of those names and
            ``overwrite`` is off; INCOMPLETE when the link broke on the way.
    """
    root = host_path(transport, transport.host.root)
    if transport.host.ssh is None and Path(root).resolve() == home.resolve():
        return []
    local = sorted(
        {p for pattern in PATTERNS for p in home.glob(pattern) if p.is_file() and not p.name.startswith(".")}
    )
    pushes = compare(transport, [(path, f"{root}/{path.relative_to(home).as_posix()}") for path in local])
    different = [push for push in pushes if push.state == "different"]
    if different and not overwrite:
        raise LaunchError(
            f"{transport.host.name} has other files of the same names: {', '.join(p.remote for p in different)}",
            why="what lies there may be the only copy, for instance what a run is writing",
            remedy="bring it home first with `launch sync-out`, or say `launch sync-in --overwrite`",
            code=Exit.REFUSED,
        )
    for push in pushes:
        if push.state != "same":
            with voice.moving(f"{push.local.name} -> {transport.host.name}", push.length_bytes) as moved:
                _send(transport, push, moved)
    return pushes


def _send(transport: Transport, push: Push, moved: Callable[[int], None]) -> None:
    try:
        transport.send(push.local, push.remote, on_bytes=moved)
    except LaunchError as error:
        if error.code != Exit.UNREACHABLE:
            raise
        raise LaunchError(
            f"{push.local.name} did not get to {transport.host.name}",
            why=f"{error.what}: {error.why}",
            remedy="run the same command again: what has arrived is not sent twice",
            code=Exit.INCOMPLETE,
        ) from error
