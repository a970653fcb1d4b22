"""What a Docker engine has: an image as it describes it, the layers of all its images, what has come of a shipment."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from launch.argv import docker, images, ship
from launch.errors import Exit, LaunchError, printable
from launch.facts import parse_free_bytes
from launch.transport import Transport


@dataclass(frozen=True, kw_only=True)
class Image:
    """An image as its engine describes it; ``layers`` are diff ids, lowest first.

    ``id`` is the digest of the configuration in one kind of image store, and of the manifest in the other
    (``by_manifest``). ``settings`` is what a container of it starts with.
    """

    id: str
    bytes: int
    layers: tuple[str, ...]
    labels: Mapping[str, str]
    settings: Mapping[str, Any] = field(default_factory=dict)
    platform: str = ""
    by_manifest: bool = False

    def is_same(self, other: Image) -> bool:
        """Whether it is the same image: by id, or by all that runs where two stores form ids in two ways."""
        if not (self.by_manifest or other.by_manifest):
            return self.id == other.id
        mine, others = ((i.layers, i.settings, i.platform, dict(i.labels)) for i in (self, other))
        return self.id == other.id or (bool(self.layers) and mine == others)

    def runs_as(self, other: Image) -> bool:
        """Whether containers of the two are alike; the labels, which name a commit, may differ."""
        return bool(self.layers) and (self.layers, self.settings) == (other.layers, other.settings)

    @property
    def code_hash(self) -> str | None:
        """Of the trainers' code in it."""
        return self.labels.get(docker.CODE_LABEL)

    @property
    def lock_hash(self) -> str | None:
        """Of the lock that it was made from."""
        return self.labels.get(docker.LOCK_LABEL)


@dataclass(frozen=True, kw_only=True)
class FarSide:
    """What a host's engine has: chains of layers, tools, free space where that is known, pieces (bytes, sha256)."""

    chains: tuple[tuple[str, ...], ...]
    tools: frozenset[str]
    engine_free_bytes: int | None
    folder_free_bytes: int | None
    pieces: dict[str, tuple[int, str]]

    def has(self, layers: Sequence[str]) -> int:
        """How many of these layers, from the lowest on, one of its images has."""
        return max((_shared(chain, layers) for chain in self.chains), default=0)


def look(transport: Transport, folder: str, *, pieces: bool = False) -> FarSide:
    """Ask a host's engine what it has; with ``pieces`` also what has come of a shipment.

    Raises:
        LaunchError: HOST_NOT_READY when it does not answer.
    """
    timeout_s = None if pieces else ANSWERS_S  # hashing what has come may take long
    result = transport.read(ship.look(folder, pieces=pieces), check=False, timeout_s=timeout_s)
    if result.code:
        raise LaunchError(
            f"the Docker engine of {transport.host.name} does not answer",
            why=result.stderr.decode(errors="replace").strip()[-400:] or "`docker version` failed there",
            remedy=f"start it on {transport.host.name}, then run this again; what has arrived is not sent twice",
            code=Exit.HOST_NOT_READY,
        )
    return parse_far(result.text)


def parse_far(text: str) -> FarSide:
    """Read what :func:`launch.argv.ship.look` prints."""
    told: dict[str, list[str]] = {}
    for line in text.splitlines():
        key, _, value = line.partition("=")
        told.setdefault(key, []).append(value)
    pieces = {}
    for line in told.get("piece", []):
        if match := re.fullmatch(r"(\S+) (\d+) ([0-9a-f]{64})", line):
            pieces[match[1]] = (int(match[2]), match[3])
    return FarSide(
        chains=tuple(_layers(line) for line in told.get("layers", [])),
        tools=frozenset(told.get("tool", [])),
        engine_free_bytes=parse_free_bytes(told.get("engine_free", [""])[0]),
        folder_free_bytes=parse_free_bytes(told.get("folder_free", [""])[0]),
        pieces=pieces,
    )


ANSWERS_S = 120.0
"""An engine that is busy may take its time; one that hangs is told."""
SETTINGS = ("User", "Env", "Entrypoint", "Cmd", "WorkingDir", "Healthcheck")


def parse_image(text: str) -> Image:
    """Read what :func:`launch.argv.images.image` prints.

    Raises:
        LaunchError: HOST_NOT_READY for anything else.
    """
    try:
        image_id, length_bytes, layers, config, names, platform = text.splitlines()
        own, told = json.loads(image_id), json.loads(config) or {}
        return Image(
            id=own,
            bytes=int(length_bytes),
            layers=tuple(json.loads(layers) or ()),
            labels=told.get("Labels") or {},
            settings={key: told[key] for key in SETTINGS if told.get(key)},
            platform=platform,
            by_manifest=any(name.endswith(f"@{own}") for name in json.loads(names) or ()),
        )
    except (ValueError, TypeError, AttributeError) as error:
        raise odd_answer("docker image inspect", text) from error


def odd_answer(command: str, text: str) -> LaunchError:
    """An engine, or what stands before it, that answers something else than what was asked."""
    return LaunchError(
        f"`{command}` says what no engine says",
        why=printable(text.strip()[:200]) or "nothing",
        remedy="see what that command prints there; a wrapper named docker may be in the way",
        code=Exit.HOST_NOT_READY,
    )


def layer_sizes(laptop: Transport, image: Image) -> list[int | None]:
    """Bytes of the files of each layer, as far as the image's history tells."""
    result = laptop.read(images.history(image.id), check=False)
    sizes = [int(size) for size in reversed(result.text.split()) if size.isdecimal()]
    if len(sizes) != len(image.layers):  # steps without a layer: their sizes are 0, and so may be a layer's
        sizes = [size for size in sizes if size]
    return list(sizes) if len(sizes) == len(image.layers) else [None] * len(image.layers)


def _layers(line: str) -> tuple[str, ...]:
    try:
        return tuple(json.loads(line) or ())
    except (ValueError, TypeError) as error:
        raise odd_answer("docker image inspect", line) from error


def packed_as(far: FarSide, laptop: Transport) -> str:
    """How layers are packed: as well as both sides can."""
    kind = next((kind for kind, tool in (("zst", "zstd"), ("gz", "gzip")) if tool in far.tools), "raw")
    if kind == "zst" and laptop.read(["zstd", "--version"], check=False).code:
        kind = "gz" if "gzip" in far.tools else "raw"
    return kind


def _shared(one: Sequence[str], two: Sequence[str]) -> int:
    return next((n for n, (a, b) in enumerate(zip(one, two, strict=False)) if a != b), min(len(one), len(two)))
