"""What can be made again and takes space on a host, who still needs it, and getting rid of the rest."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from typing import Any

from launch.argv import docker, shelf, tidy
from launch.environment import image as images
from launch.environment import virtual
from launch.environment.engine import odd_answer
from launch.environment.larder import Larder
from launch.environment.task import Site
from launch.runs.observe import Run, observe
from minimind.durable import sha256_file, tree_hash
from minimind.rundir import State

KINDS = {"env": "environment", "code": "code", "images": "piece of an image"}
WHEELS, LAYER, LOOSE = "wheels", "packed layer", "packed, of no layer"
"""Kept on this machine for other hosts."""
HASH_CHARACTERS = 16
ENDED = ("exited", "dead")
"""States of containers that need their image no more: a run that can go on gets a new container."""
LISTED = re.compile(r"(\d+) (whole|half|left|making) ((env|code|images)/(\.\w+-)?([0-9a-f]{16})?[\w.-]*)")


@dataclass(frozen=True, kw_only=True)
class Item:
    """One thing. ``kept_for`` says who needs it; empty when nobody does."""

    kind: str
    name: str
    bytes: int
    whole: bool
    kept_for: tuple[str, ...]


def needs(runs: Iterable[Run], key: str) -> dict[str, list[str]]:
    """Values of a key of the spec -> the runs that are not done: they live, or can be resumed."""
    found: dict[str, list[str]] = {}
    for run in runs:
        if run.state.state is not State.SUCCEEDED and (value := run.spec.get(key)):
            found.setdefault(str(value), []).append(run.run_id)
    return found


def folders(site: Site) -> list[Item]:
    """Environments, code and pieces of images below the root."""
    runs = observe(site.transport)
    current = {"env": map(sha256_file, virtual.locks(site.here.envs)), "code": [tree_hash(site.here.package)]}
    wanted: dict[tuple[str, str], list[str]] = {}
    for place, key in (("env", "lock_hash"), ("code", "code_hash")):
        for value, names in needs(runs, key).items():
            wanted.setdefault((place, value[:HASH_CHARACTERS]), []).extend(names)
        for value in current[place]:
            wanted.setdefault((place, value[:HASH_CHARACTERS]), []).append("this version")
    found = []
    listed = [
        match
        for line in site.transport.read(shelf.listing(site.root)).text.splitlines()
        if (match := LISTED.fullmatch(line)) and (match[5] or match[6])
    ]
    there = {match[3] for match in listed}
    for match in listed:
        kilobytes, state, name, place, _, key = match.groups()
        kept = ("being made",) if state == "making" else tuple(wanted.get((place, key), ()))
        if state == "left" and not _is_the_only_one(name, there):
            kept = ()
        whole, length_bytes = state == "whole", int(kilobytes) * 1024
        found.append(Item(kind=KINDS[place], name=name, bytes=length_bytes, whole=whole, kept_for=kept))
    if site.host.ssh is None:
        for name, length_bytes in Larder(site.here.cache).wheels().items():
            kept = tuple(wanted.get(("env", name[:HASH_CHARACTERS]), ()))
            found.append(Item(kind=WHEELS, name=name, bytes=length_bytes, whole=True, kept_for=kept))
    return found


def _is_the_only_one(name: str, there: AbstractSet[str]) -> bool:
    """Whether this is an environment that a killed call had moved away for a newer one: the next call puts it back."""
    match = re.fullmatch(r"env/\.making-([\w-]+)\.\w+\.old", name)
    return match is not None and f"env/{match[1]}" not in there


def engine_images(site: Site) -> list[Item]:
    """Our images on the host's engine; of this machine also what it keeps packed of them for other hosts."""
    layers: dict[str, list[str]] = {}
    wanted = needs(observe(site.transport), "image_digest")
    for line in site.transport.read(tidy.containers(docker.RUN_LABEL)).text.splitlines():
        told = _told(line, "image", "state", "name", "run")
        if not told["run"] or told["state"] not in ENDED:
            wanted.setdefault(str(told["image"]), []).append(f"container {str(told['name']).lstrip('/')}")
    reference = images.reference_of(site)
    current = {reference, *(f"{images.NAME}:{flavour}" for flavour in ("cpu", "cuda"))}
    found = []
    for line in site.transport.read(tidy.images(docker.CODE_LABEL)).text.splitlines():
        told = _told(line, "id", "bytes", "names", "layers")
        names = tuple(told["names"] or ())
        kept = (*wanted.get(told["id"], ()), *(name for name in names if name in current))
        found.append(Item(kind="image", name=str(told["id"]), bytes=int(told["bytes"]), whole=True, kept_for=kept))
        for layer in told["layers"] or ():
            layers.setdefault(layer, []).append((names or (told["id"][:19],))[0])
    if site.host.ssh is None:
        larder = Larder(site.here.cache)
        for layer, length_bytes in larder.layers().items():
            kept = tuple(dict.fromkeys(layers.get(layer, ())))
            found.append(Item(kind=LAYER, name=layer, bytes=length_bytes, whole=True, kept_for=kept))
        if loose := larder.loose():
            total_bytes = sum(loose.values())
            found.append(Item(kind=LOOSE, name=f"{len(loose)} files", bytes=total_bytes, whole=False, kept_for=()))
    return found


def _told(line: str, *keys: str) -> dict[str, Any]:
    try:
        told = json.loads(line)
        return {key: told[key] for key in keys}
    except (ValueError, TypeError, KeyError) as error:
        raise odd_answer("docker inspect", line) from error


def remove(site: Site, items: Iterable[Item]) -> list[Item]:
    """Remove things that nobody needs; gives those that had to stay: in use after all, or being made."""
    unneeded = [item for item in items if not item.kept_for]
    larder = Larder(site.here.cache)
    larder.drop_layers([item.name for item in unneeded if item.kind == LAYER])
    larder.drop_wheels([item.name for item in unneeded if item.kind == WHEELS])
    if any(item.kind == LOOSE for item in unneeded):
        larder.drop_loose()
    paths = [item for item in unneeded if item.kind in KINDS.values()]
    stayed = []
    if paths:
        left = site.transport.run(shelf.remove(site.root, [item.name for item in paths]), check=False).text.splitlines()
        stayed = [item for item in paths if item.name in left]
    for item in unneeded:
        words = tidy.remove_image(item.name, docker.RUN_LABEL)
        if item.kind == "image" and site.transport.run(words, check=False).code:
            stayed.append(item)
    return stayed
