"""An image as an engine loads it: a configuration written here, word for word, and layers made elsewhere."""

from __future__ import annotations

import contextlib
import gzip
import hashlib
import io
import json
import subprocess
import tarfile
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from engine import words
from layers import MTIME_S, Layer

ENVIRONMENT = {
    "PATH": "/opt/minimind/bin:/usr/local/bin:/usr/bin:/bin",
    "LC_ALL": "C.UTF-8",
    "PYTHONUNBUFFERED": "1",
    "PYTHONDONTWRITEBYTECODE": "1",
    "HOME": "/home/minimind",
    "USER": "minimind",
}
HEALTHCHECK = {
    "Test": ["CMD", "python", "-m", "minimind.health"],
    "Interval": 30_000_000_000,
    "Timeout": 10_000_000_000,
    "StartPeriod": 60_000_000_000,
    "Retries": 3,
}
"""Times in nanoseconds. The supervisor's heartbeat is what is looked at."""
SETTINGS = ("User", "Env", "Entrypoint", "Cmd", "OnBuild", "WorkingDir", "Labels", "Healthcheck")
"""What a container of an image takes from it; two of these are never there."""


class Refused(Exception):
    """An engine did not take or give an image; the text is its own words."""


@dataclass(frozen=True, kw_only=True)
class Base:
    """What a base gives to an image: its layers and what they run on; ``digest`` says which one it is."""

    name: str
    diff_ids: tuple[str, ...]
    architecture: str
    os: str
    variant: str
    digest: str


@dataclass(frozen=True, kw_only=True)
class Step:
    """One layer as ``docker history`` shows it."""

    diff_id: str
    told: str


def configuration(base: Base, steps: Sequence[Step], labels: Mapping[str, str], *, created: str) -> bytes:
    """The image's configuration; its sha256 is the image's id.

    Nothing of the base's own configuration goes in but its layers and platform: a base made twice may carry two times.
    """
    history = [
        {"created": created, "created_by": told}
        for told in (*(f"base layer {digest}" for digest in base.diff_ids), *(step.told for step in steps))
    ]
    value: dict[str, Any] = {
        "architecture": base.architecture,
        "os": base.os,
        **({"variant": base.variant} if base.variant else {}),
        "created": created,
        "config": {
            "User": "minimind",
            "Env": [f"{name}={text}" for name, text in ENVIRONMENT.items()],
            "Entrypoint": ["python", "-m", "minimind.supervise"],
            "WorkingDir": "/home/minimind",
            "Labels": dict(sorted(labels.items())),
            "Healthcheck": HEALTHCHECK,
        },
        "history": history,
        "rootfs": {"type": "layers", "diff_ids": [*base.diff_ids, *(step.diff_id for step in steps)]},
    }
    return json.dumps(value, sort_keys=True, separators=(",", ":")).encode()


def bare_configuration(diff_id: str, *, architecture: str, environment: Mapping[str, str], created: str) -> bytes:
    """The configuration of an image with one layer and nothing to run."""
    value = {
        "architecture": architecture,
        "os": "linux",
        "created": created,
        "config": {"Env": [f"{name}={text}" for name, text in environment.items()]},
        "history": [{"created": created, "created_by": "docker/build.py base"}],
        "rootfs": {"type": "layers", "diff_ids": [diff_id]},
    }
    return json.dumps(value, sort_keys=True, separators=(",", ":")).encode()


def image_id(config: bytes) -> str:
    """How an engine names the image of this configuration."""
    return f"sha256:{hashlib.sha256(config).hexdigest()}"


def diff_ids(config: bytes) -> list[str]:
    """The layers of a configuration, lowest first."""
    found: list[str] = json.loads(config)["rootfs"]["diff_ids"]
    return found


def is_it(told: Mapping[str, Any] | None, config: bytes) -> bool:
    """Whether what an engine tells of an image is the image of this configuration.

    Some stores name an image by its configuration and some by a manifest of their own making; then its layers, labels
    and settings are compared.
    """
    if told is None:
        return False
    wanted = json.loads(config)
    settings = all((told["Config"].get(key) or None) == wanted["config"].get(key) for key in SETTINGS)
    return told["Id"] == image_id(config) or (
        any(name.endswith(f"@{told['Id']}") for name in told.get("RepoDigests") or ())
        and told["RootFS"]["Layers"] == wanted["rootfs"]["diff_ids"]
        and settings
    )


def load(client: str, config: bytes, tag: str, layers: Mapping[str, Layer]) -> None:
    """Load an image; layers that are not given are those that the engine has.

    Raises:
        Refused: when the engine does not take it.
    """
    command = [client, "load", "--quiet"]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE}
    with subprocess.Popen(command, **pipes) as process:
        with contextlib.suppress(BrokenPipeError):
            write(process.stdin, config, tag, layers)
        with contextlib.suppress(BrokenPipeError):
            process.stdin.close()
        told = process.stderr.read()
        if process.wait():
            raise Refused(words(told, process.returncode))


def write(file: IO[bytes], config: bytes, tag: str, layers: Mapping[str, Layer]) -> None:
    """Write the archive: the layers that are given, the configuration, the manifest."""
    names = {diff_id: f"{diff_id.removeprefix('sha256:')}.tar" for diff_id in diff_ids(config)}
    config_name = f"{image_id(config).removeprefix('sha256:')}.json"
    manifest = [{"Config": config_name, "RepoTags": [tag], "Layers": list(names.values())}]
    with tarfile.open(fileobj=file, mode="w|", format=tarfile.PAX_FORMAT) as tar:
        for diff_id, layer in layers.items():
            with open(layer.path, "rb") as data:
                tar.addfile(_header(names[diff_id], layer.bytes), data)
        for name, text in ((config_name, config), ("manifest.json", json.dumps(manifest).encode())):
            tar.addfile(_header(name, len(text)), io.BytesIO(text))


def _header(name: str, length_bytes: int) -> tarfile.TarInfo:
    header = tarfile.TarInfo(name)
    header.size, header.mtime = length_bytes, MTIME_S
    return header


def saved_layers(client: str, reference: str, folder: Path) -> dict[str, Layer]:
    """Every layer of an image that the engine has, as files; for engines that load nothing but whole archives.

    Raises:
        Refused: when the engine does not give it out.
    """
    with subprocess.Popen([client, "save", reference], stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        try:
            found, broken = _layers_of(process.stdout, folder), ""
        except (tarfile.TarError, EOFError, zlib.error) as error:
            found, broken = {}, f"what it saved is no archive: {error}"
        except BaseException:
            process.kill()
            raise
        while process.stdout.read(1 << 20):
            pass
        told = process.stderr.read()
        if process.wait():
            raise Refused(words(told, process.returncode))
        if broken:
            raise Refused(broken)
    return found


def _layers_of(stream: IO[bytes], folder: Path) -> dict[str, Layer]:
    found: dict[str, Layer] = {}
    with tarfile.open(fileobj=stream, mode="r|") as tar:
        for number, member in enumerate(tar):
            data = tar.extractfile(member) if member.isreg() else None
            if data is None or member.name.endswith(".json"):
                continue
            path, digest = folder / f"saved-{number}.tar", hashlib.sha256()
            packed = data.peek(2).startswith(b"\x1f\x8b")  # some stores keep layers as a registry gave them
            plain = gzip.GzipFile(fileobj=data) if packed else data
            with open(path, "wb") as file:
                while block := plain.read(1 << 20):
                    digest.update(block)
                    file.write(block)
            diff_id = f"sha256:{digest.hexdigest()}"
            found[diff_id] = Layer(path=path, diff_id=diff_id, bytes=path.stat().st_size)
    return found
