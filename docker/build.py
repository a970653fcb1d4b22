"""Make the training image, or a local base for it: ``build.py cpu``, ``build.py cuda``, ``build.py base``.

No ``docker build``: engines of different ages control times in layers and configuration differently or not at all. A
container of the base installs the wheels (docker/install.sh), the result is taken out and written down as layers that
are the same bytes each time, and the engine loads them with a configuration written here. Any engine and client do.

Wheels are collected outside, because containers cannot reach an index everywhere: with this Python where it is a 3.11
on Linux, else in a container of the base image. pip checks every hash again when it installs them.
"""

from __future__ import annotations

import argparse
import errno
import fcntl
import os
import shutil
import signal
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parent), str(HERE)]

import archive  # noqa: E402 (a script: it finds its repository first)
import bases  # noqa: E402
import compare  # noqa: E402
import container  # noqa: E402
import layers  # noqa: E402
import sbom  # noqa: E402
from engine import NOT_READY, ROOT, CannotBuild, choose_client, inspect  # noqa: E402
from recipe import CODE_LABEL, MAKE_ROOM, Recipe  # noqa: E402

from minimind.durable import is_disk_full, publish  # noqa: E402

INTERRUPTED = 130


def build_image(recipe: Recipe) -> None:
    """Make ``minimind-launch:<flavour>`` of what the engine lacks, and the list of what is in it."""
    known, described = recipe.known(), recipe.folder / sbom.FILE
    with tempfile.TemporaryDirectory(dir=recipe.folder, prefix="layers-") as folder:
        made = {label: recipe.make(label, Path(folder)) for label in recipe.keys if label not in known}
        config = recipe.config(known | {label: layer.diff_id for label, layer in made.items()})
        ready = archive.is_it(inspect(recipe.client, recipe.tag), config)
        if ready and sbom.describes(described, archive.image_id(config)):
            print(f"{recipe.tag} is up to date")
            return
        with sbom.replaced(described, bill(recipe, config), lambda: tagged(recipe)):
            if not ready:
                load(recipe, config, {layer.diff_id: layer for layer in made.values()}, Path(folder))
                keep(recipe.folder / "parts", config, made.get(CODE_LABEL))
    print(f"{recipe.tag} is ready: {archive.image_id(config)}")
    print(f"what is in it: {os.path.relpath(described, ROOT)}")


def tagged(recipe: Recipe) -> str | None:
    """The id of the image that carries the tag."""
    return (inspect(recipe.client, recipe.tag) or {}).get("Id")


def keep(parts: Path, config: bytes, code: layers.Layer | None) -> None:
    """Leave what changes most beside the image: shipping it then need not read the rest out of the engine."""
    parts.mkdir(exist_ok=True)
    wanted = {f"{archive.image_id(config).removeprefix('sha256:')}.config"}
    wanted |= {f"{diff_id.removeprefix('sha256:')}.tar" for diff_id in archive.diff_ids(config)}
    for path in parts.iterdir():
        if path.name not in wanted:
            path.unlink()
    publish(parts / f"{archive.image_id(config).removeprefix('sha256:')}.config", config, mode=0o644)
    if code is not None:
        shutil.move(code.path, parts / f"{code.diff_id.removeprefix('sha256:')}.tar")


def bill(recipe: Recipe, config: bytes) -> bytes:
    """What is in the image."""
    packages = container.packages(recipe.client, recipe.base_name)
    if not packages:
        print(f"{recipe.base_name} has no dpkg: {sbom.FILE} has the wheels only, not the base's packages", flush=True)
    return sbom.document(tag=recipe.tag, config=config, wheels=recipe.wheels(), packages=packages)


def load(recipe: Recipe, config: bytes, made: Mapping[str, layers.Layer], folder: Path) -> None:
    """Load the image, with what the engine has already only where it insists.

    Raises:
        CannotBuild: when it does not take even a whole archive.
    """
    try:
        try:
            archive.load(recipe.client, config, recipe.tag, made)
        except archive.Refused as error:
            print(f"the engine wants every layer: {error}", flush=True)
            whole = archive.saved_layers(recipe.client, recipe.base_name, folder)
            archive.load(recipe.client, config, recipe.tag, {**whole, **made})
    except archive.Refused as error:
        raise CannotBuild(
            "the engine did not load the image",
            why=str(error),
            remedy="mend that (a full disk?) and run the same again",
        ) from error
    if not archive.is_it(inspect(recipe.client, recipe.tag), config):
        raise CannotBuild(
            f"the engine has another image as {recipe.tag} than it was given",
            why="its layers or labels differ from what was loaded",
            remedy=f"{recipe.client} rmi {recipe.tag}, then run the same again",
        )


def not_written(error: OSError) -> CannotBuild:
    """What a full disk or a folder that is not ours comes to."""
    if is_disk_full(error):
        return CannotBuild(
            "there is no room left for the image's layers",
            why=f"{error.strerror}; build/ had {shutil.disk_usage(ROOT / 'build').free / 1e9:.1f} GB for them",
            remedy=MAKE_ROOM,
        )
    where = f" {error.filename}" if error.filename else ""
    name = errno.errorcode.get(error.errno or 0, type(error).__name__)
    return CannotBuild(
        f"the build could not go on{where and f' at{where}'}",
        why=f"{error.strerror or error} ({name})",
        remedy="check the disk and its permissions, and run the same again",
    )


def main() -> int:
    """Run the command line."""
    parser = argparse.ArgumentParser(description="Make the training image or a local base for it.")
    parser.add_argument("what", choices=["cpu", "cuda", "base"])
    parser.add_argument(
        "--base", help=f"the image to build on (default: {bases.DEFAULT_BASE}, else {bases.LOCAL_BASE})"
    )
    parser.add_argument("--check", action="store_true", help="make it twice from nothing and compare, file by file")
    options = parser.parse_args()
    try:
        return run(options)
    except CannotBuild as error:
        sys.stderr.write(f"{error}\n")
        return error.code
    except OSError as error:
        sys.stderr.write(f"{not_written(error)}\n")
        return NOT_READY
    except KeyboardInterrupt:
        sys.stderr.write("\ninterrupted; nothing half-made was left\n")
        return INTERRUPTED


def run(options: argparse.Namespace) -> int:
    """Do what the command line says, one at a time in a repository."""
    client = choose_client()
    (ROOT / "build").mkdir(exist_ok=True)
    with (ROOT / "build" / "image.lock").open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        if options.what == "base":
            bases.build_base(client)
        elif options.check:
            return compare.check(Recipe.of(client, options.what, options.base))
        else:
            build_image(Recipe.of(client, options.what, options.base))
    return 0


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    sys.exit(main())
