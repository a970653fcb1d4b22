"""The docker client on this machine, and what may be missing."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
ENGINE_TIMEOUT_S = 20.0
NOT_READY, USAGE = 5, 2


class CannotBuild(Exception):
    """Something that this machine lacks: one paragraph, exit 5; or something wrong that was asked for, exit 2."""

    def __init__(self, what: str, *, why: str, remedy: str, code: int = NOT_READY) -> None:
        super().__init__(f"{what}\n  why: {why}\n  remedy: {remedy}")
        self.code = code


def clients(environ: Mapping[str, str]) -> Iterator[str]:
    """Every docker client on PATH, ``$DOCKER`` first."""
    if named := environ.get("DOCKER"):
        yield named
    for folder in environ.get("PATH", "").split(os.pathsep):
        if os.access(path := os.path.join(folder, "docker"), os.X_OK):
            yield path


def said(command: Sequence[str], *, timeout_s: float = ENGINE_TIMEOUT_S) -> str | None:
    """What a command prints; None when it fails or does not answer."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=timeout_s)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def words(stderr: bytes, code: int) -> str:
    """Why a client failed, in its own words."""
    lines = stderr.decode(errors="replace").strip().splitlines()
    return "; ".join(lines[-6:]) or f"it said nothing and ended with code {code}"


def choose_client() -> str:
    """A client that reaches an engine.

    Raises:
        CannotBuild: when there is none.
    """
    unfit = []
    for client in clients(os.environ):
        version = said([client, "version", "--format", "{{.Client.Version}}, engine {{.Server.Version}}"])
        if version is not None:
            print(f"docker client: {client} {version}; layers are written here and loaded", flush=True)
            return client
        unfit.append(f"{client} reaches no engine")
    raise CannotBuild(
        "no docker client here can build",
        why="; ".join(unfit) or "there is no docker on PATH",
        remedy="install and start Docker (Debian: apt install docker.io), or name a client: DOCKER=/path/to/docker",
    )


def inspect(client: str, reference: str) -> dict | None:
    """What an engine knows of an image; None when it has none of that name."""
    told = json.loads(said([client, "image", "inspect", reference]) or "[]")
    return told[0] if told else None


def run(command: Sequence[str], **environ: str) -> None:
    """Run a step with its output in view.

    Raises:
        CannotBuild: when it fails.
    """
    done = subprocess.run(command, cwd=ROOT, env=os.environ | environ)
    if done.returncode:
        raise CannotBuild(
            f"`{' '.join(command[:4])} ...` failed with exit code {done.returncode}",
            why="its output stands above",
            remedy="mend what it says and run the same again",
        )
