"""Whether a host's image is the one of this machine: by its id, and where that differs, in what."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from launch.argv import tidy
from launch.environment import audit
from launch.environment import image as images
from launch.environment.engine import Image
from launch.environment.task import Site
from launch.errors import Exit, LaunchError

SBOM = "sbom.cdx.json"


@dataclass(frozen=True, kw_only=True)
class Difference:
    """One thing in which the host's image is another."""

    what: str
    here: str | None
    there: str | None


def bill(site: Site, reference: str, explicit: Path | None) -> dict[str, Any] | None:
    """The bill of materials: the file asked for, else the one that `make image` left beside this code.

    Raises:
        LaunchError: INVALID when the file asked for is none.
    """
    path = explicit or site.here.package.parent / "build" / "image" / reference.rpartition(":")[2] / SBOM
    try:
        told: dict[str, Any] = json.loads(path.read_bytes())
        told["metadata"]["component"]["version"], told["components"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        if explicit is None:
            return None
        raise LaunchError(
            f"{explicit} is no bill of materials of an image",
            why=str(error),
            remedy="`make image` writes one: build/image/<flavour>/sbom.cdx.json",
            code=Exit.INVALID,
        ) from error
    return told


def verify(site: Site, reference: str, explicit: Path | None) -> tuple[Image, list[Difference]]:
    """Compare the image on a host with the one here, or with the bill of materials where there is none here.

    Raises:
        LaunchError: HOST_NOT_READY when there is nothing to compare.
    """
    there, here = images.inspect(site.transport, reference), images.inspect(site.laptop, reference)
    told = bill(site, reference, explicit)
    if there is None:
        raise LaunchError(
            f"{site.host.name} has no image {reference}",
            why="its engine does not know that name, or does not answer",
            remedy=f"launch ship-image {site.host.name}",
            code=Exit.HOST_NOT_READY,
        )
    if told is None and here is None:
        raise LaunchError(
            f"there is nothing here to compare {reference} with",
            why="the engine here has no image of that name, and there is no bill of materials",
            remedy="make image, or name the bill with --sbom",
            code=Exit.HOST_NOT_READY,
        )
    if explicit is None and here is not None:
        own = there.id if there.is_same(here) else here.id  # two stores may name one image in two ways
        wanted: tuple[str, tuple[str, ...], Mapping[str, str]] = (own, here.layers, here.labels)
    else:
        wanted = _of_bill(told or {})
        if there.by_manifest and wanted[1:] == (there.layers, there.labels):
            wanted = there.id, *wanted[1:]  # a bill names the configuration, and that store the manifest
    found = differences(wanted, (there.id, there.layers, there.labels))
    if told is not None and _of_bill(told)[1] == there.layers:
        found += packages(told, audit.inside(site, tidy.packages(there.id, audit.PROBE))["packages"])
    return there, found


def _of_bill(told: Mapping[str, Any]) -> tuple[str, tuple[str, ...], dict[str, str]]:
    component = told["metadata"]["component"]
    properties = {str(item["name"]): str(item["value"]) for item in component.get("properties", [])}
    layers = [name for name in properties if name.startswith("layer.")]
    return component["version"], tuple(properties.pop(name) for name in layers), properties


def differences(
    here: tuple[str, tuple[str, ...], Mapping[str, str]], there: tuple[str, tuple[str, ...], Mapping[str, str]]
) -> list[Difference]:
    """Ids, layers by number and labels by name that are not the same."""
    found = [] if here[0] == there[0] else [Difference(what="image id", here=here[0], there=there[0])]
    for number in range(max(len(here[1]), len(there[1]))):
        mine, other = (dict(enumerate(layers)).get(number) for layers in (here[1], there[1]))
        if mine != other:
            found.append(Difference(what=f"layer {number}", here=mine, there=other))
    for name in sorted({*here[2], *there[2]}):
        if here[2].get(name) != there[2].get(name):
            found.append(Difference(what=name, here=here[2].get(name), there=there[2].get(name)))
    return found


def packages(told: Mapping[str, Any], installed: Mapping[str, list[str]]) -> list[Difference]:
    """Python packages of the bill that the image does not have as it says, and others that it has."""
    billed = {c["name"]: c["version"] for c in told["components"] if str(c.get("purl", "")).startswith("pkg:pypi/")}
    found = {audit.canonical(name): ", ".join(versions) for name, versions in installed.items()}
    return [
        Difference(what=f"package {name}", here=billed.get(name), there=found.get(name))
        for name in sorted({*billed, *found})
        if billed.get(name) != found.get(name)
    ]
