"""Whether the image comes out the same: made twice from nothing, and against the one that carries the tag."""

from __future__ import annotations

import dataclasses
import json
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import archive
import layers
from engine import CannotBuild, inspect
from recipe import CODE_LABEL, DEPENDENCIES_LABEL, REVISION_LABEL, Recipe, build_wheel

NOT_IDENTICAL = 8
DECIDING = (REVISION_LABEL, "org.opencontainers.image.created", "org.opencontainers.image.base.digest")


def check(recipe: Recipe) -> int:
    """Make our wheel and both layers twice from nothing and compare them file by file; returns the exit code.

    The wheels of the lock are collected once: their hashes are in it, and pip looks at them each time.
    """
    with tempfile.TemporaryDirectory(dir=recipe.folder, prefix="check-") as name:
        rounds = [one_round(recipe, Path(name, number)) for number in ("1", "2")]
        lines = unlike(*rounds)
        lines += unlike_tagged(recipe, rounds[0], Path(name))
    print(*lines, sep="\n", end="\n" if lines else "")
    print("NOT identical: what differs is listed above" if lines else "identical, bit for bit")
    return NOT_IDENTICAL if lines else 0


@dataclasses.dataclass(frozen=True, kw_only=True)
class Round:
    """One image, its configuration and where its own layers lie."""

    name: str
    config: bytes
    layers: Mapping[str, layers.Layer]


def one_round(recipe: Recipe, folder: Path) -> Round:
    """Make everything once, in a folder of its own."""
    folder.mkdir()
    recipe = dataclasses.replace(recipe, wheel=build_wheel(folder / "dist"))
    made = {label: recipe.make(label, folder) for label in recipe.keys}
    config = recipe.config({label: layer.diff_id for label, layer in made.items()})
    told = (f"{layer.path.stem}: {layer.diff_id}" for layer in made.values())
    print(f"build {folder.name}: {archive.image_id(config)}", *told, sep="\n  ", flush=True)
    return Round(name=f"build {folder.name}", config=config, layers={m.diff_id: m for m in made.values()})


def unlike(one: Round, two: Round) -> list[str]:
    """What differs between two images, a line each: files of layers, labels, settings."""
    lines = []
    for first, second in zip(archive.diff_ids(one.config), archive.diff_ids(two.config), strict=True):
        if first != second:
            lines.append(f"{one.name} and {two.name} differ in a layer: {first} and {second}")
            lines += between(one.layers.get(first), two.layers.get(second))
    configs = [json.loads(image.config) for image in (one, two)]
    labels = [config["config"].pop("Labels") or {} for config in configs]
    for name in sorted({*labels[0], *labels[1]}):
        if (first := labels[0].get(name)) != (second := labels[1].get(name)):
            lines.append(f"label {name}: {first} and {second}")
    if configs[0]["config"] != configs[1]["config"]:
        lines.append(f"settings: {configs[0]['config']} and {configs[1]['config']}")
    return lines


def between(one: layers.Layer | None, two: layers.Layer | None) -> list[str]:
    """The files in which two layers differ, where both can be read."""
    if one is None or two is None:
        return []
    with open(one.path, "rb") as first, open(two.path, "rb") as second:
        return layers.differences(layers.contents(first), layers.contents(second))


def unlike_tagged(recipe: Recipe, made: Round, folder: Path) -> list[str]:
    """What differs from the image that carries the tag, when that is of this commit, base and time."""
    told = inspect(recipe.client, recipe.tag)
    if told is None or not same_tree(told["Config"].get("Labels") or {}, json.loads(made.config)["config"]["Labels"]):
        print(f"{recipe.tag} is {'not here' if told is None else 'of another tree'}: not compared with it", flush=True)
        return []
    print(f"compared with {recipe.tag}, {told['Id']}", flush=True)
    if archive.is_it(told, made.config):
        return []
    try:
        saved = archive.saved_layers(recipe.client, recipe.tag, folder)
    except archive.Refused as error:
        raise CannotBuild(
            f"{recipe.tag} differs, and its files cannot be read", why=str(error), remedy=f"{recipe.client} save it"
        ) from error
    config = {key: value for key in archive.SETTINGS if (value := told["Config"].get(key))}
    as_config = {"config": config, "rootfs": {"diff_ids": told["RootFS"]["Layers"]}}
    tagged = Round(name=recipe.tag, config=json.dumps(as_config).encode(), layers=saved)
    return unlike(made, tagged) or [f"{recipe.tag}: {told['Id']} is not {archive.image_id(made.config)}"]


def same_tree(tagged: Mapping[str, Any], ours: Mapping[str, str]) -> bool:
    """Whether an image must be ours by its labels: of one clean commit, or, with changes, made of the same things."""
    dirty = ours[REVISION_LABEL].endswith("-dirty") or ours[REVISION_LABEL] == "unknown"
    wanted = (*DECIDING, *((DEPENDENCIES_LABEL, CODE_LABEL) if dirty else ()))
    return all(tagged.get(label) == ours[label] for label in wanted)
