"""Make the training image, or a local base for it: ``build.py cpu``, ``build.py cuda``, ``build.py base``.

No ``docker build``: engines of different ages control times in layers and configuration differently or not at all. A
container of the base installs the wheels (docker/install.sh), the result is taken out and written down as layers that
are the same bytes each time, and the engine loads them with a configuration written here. Any engine and client do.

Wheels are collected outside, because containers cannot reach an index everywhere: with this Python where it is a 3.11
on Linux, else in a container of the base image. pip checks every hash again when it installs them.
"""

from __future__ import annotations

import argparse
import fcntl
import hashlib
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parent), str(HERE)]

import archive  # noqa: E402 (a script: it finds its repository first)
import bases  # noqa: E402
import layers  # noqa: E402
import sbom  # noqa: E402
from engine import ROOT, CannotBuild, choose_client, inspect, run, said  # noqa: E402

from minimind.durable import publish, sha256_file, tree_hash  # noqa: E402

NOT_IDENTICAL = 8
OLDEST_DRIVER = {"13": "580.65.06", "12": "525.60.13"}
"""Major version of CUDA -> NVIDIA's oldest Linux driver for all its minor versions (release notes of the toolkit)."""
DEPENDENCIES_LABEL, CODE_LABEL = "org.minimind.dependencies", "org.minimind.inputs"
INSTALLER = HERE / "install.sh"


def collect_wheels(client: str, base: str, lock: Path, wheelhouse: Path) -> None:
    """Fill the wheelhouse for Python 3.11 on Linux."""
    script, there = "envs/install.py", wheelhouse.relative_to(ROOT)
    arguments = [script, "--download", str(there), "--lock", str(lock.relative_to(ROOT))]
    if platform.system() == "Linux" and sys.version_info[:2] == (3, 11):
        return run([sys.executable, *arguments])
    as_me = ["--user", f"{os.getuid()}:{os.getgid()}", "--env", "HOME=/tmp", "--workdir", "/repository"]
    mounted = ["--volume", f"{ROOT}/envs:/repository/envs:ro", "--volume", f"{ROOT}/build:/repository/build"]
    return run([client, "run", "--rm", *as_me, *mounted, base, "python3", *arguments])


def build_wheel(dist: Path) -> Path:
    """Our own wheel, alone in its folder; the same bytes for the same files."""
    shutil.rmtree(dist, ignore_errors=True)
    options = ["--no-deps", "--no-index", "--no-build-isolation", "--disable-pip-version-check", "--quiet"]
    command = [sys.executable, "-I", "-m", "pip", "wheel", *options, "--wheel-dir", str(dist), str(ROOT)]
    run(command, SOURCE_DATE_EPOCH=str(layers.MTIME_S))
    return next(dist.glob("*.whl"))


def revision() -> str:
    """The commit, with ``-dirty`` when the tree differs from it."""
    commit = said(["git", "-C", str(ROOT), "rev-parse", "HEAD"])
    changed = said(["git", "-C", str(ROOT), "status", "--porcelain"])
    return f"{commit}{'-dirty' if changed else ''}" if commit else "unknown"


def created(environ: Mapping[str, str]) -> str:
    """SOURCE_DATE_EPOCH, else the commit's time, as an image's configuration writes it."""
    told = environ.get("SOURCE_DATE_EPOCH") or said(["git", "-C", str(ROOT), "log", "-1", "--format=%ct"])
    return datetime.fromtimestamp(int(told or layers.MTIME_S), UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def versions(lock: Path) -> dict[str, str]:
    """Labels that say which torch a lock has, and for CUDA what the host's driver must be."""
    text = lock.read_text()
    torch = re.search(r"^torch==(\S+)", text, re.MULTILINE)
    runtime = re.search(r"^nvidia-cuda-runtime(?:-cu\d+)?==(\d+)\.(\d+)", text, re.MULTILINE)
    if torch is None:
        raise CannotBuild(f"{lock.name} names no torch", why="it is cut or edited", remedy="regenerate it: `make lock`")
    if runtime is None:
        return {"org.minimind.torch": f"{torch[1]}+cpu", "org.minimind.cuda": "none"}
    return {
        "org.minimind.torch": torch[1],
        "org.minimind.cuda": f"{runtime[1]}.{runtime[2]}",
        "org.minimind.driver": OLDEST_DRIVER.get(runtime[1], "unknown"),
    }


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """Everything that decides the image."""

    client: str
    flavour: str
    base_name: str
    base: archive.Base
    lock: Path
    wheel: Path
    folder: Path

    @classmethod
    def of(cls, client: str, flavour: str, wanted_base: str | None) -> Recipe:
        """Look at the tree and at the engine; makes our own wheel."""
        folder = ROOT / "build" / "image" / flavour
        folder.mkdir(parents=True, exist_ok=True)
        name = bases.choose_base(client, wanted_base)
        return cls(
            client=client,
            flavour=flavour,
            base_name=name,
            base=bases.describe_base(client, name),
            lock=ROOT / "envs" / f"{flavour}.lock",
            wheel=build_wheel(folder / "dist"),
            folder=folder,
        )

    @property
    def tag(self) -> str:
        """The image's name."""
        return f"minimind-launch:{self.flavour}"

    @property
    def keys(self) -> dict[str, str]:
        """Label -> hash of what decides that layer, so that a layer made once is found again."""
        always = [*self.base.diff_ids, sha256_file(INSTALLER), sha256_file(Path(layers.__file__))]
        own = {DEPENDENCIES_LABEL: sha256_file(self.lock), CODE_LABEL: sha256_file(self.wheel)}
        return {k: hashlib.sha256("\n".join([*always, v]).encode()).hexdigest() for k, v in own.items()}

    def known(self) -> dict[str, str]:
        """Label -> the layer that an image on the engine has for it."""
        found = {}
        for place, (label, key) in enumerate(self.keys.items(), len(self.base.diff_ids)):
            listed = said([self.client, "image", "ls", "--quiet", "--no-trunc", "--filter", f"label={label}={key}"])
            for reference in (listed or "").split()[:1]:
                found[label] = (inspect(self.client, reference) or {})["RootFS"]["Layers"][place]
        return found if DEPENDENCIES_LABEL in found else {}

    def make(self, label: str, folder: Path) -> layers.Layer:
        """Install into a container of the base and write the layer."""
        what, wheels, paths = "code", self.wheel.parent, ["/opt/minimind"]
        if label == DEPENDENCIES_LABEL:
            what, wheels = "dependencies", self.folder / "wheelhouse"
            paths += ["/etc/group", "/etc/passwd", "/home/minimind"]
            collect_wheels(self.client, self.base_name, self.lock, wheels)
        target = folder / f"{what}.tar"
        try:
            return layers.installed(
                self.client, self.base_name, what, wheels=wheels, paths=paths, script=INSTALLER, target=target
            )
        except subprocess.CalledProcessError as error:
            raise CannotBuild(
                f"the layer of the {what} could not be made",
                why=f"`{' '.join(map(str, error.cmd[:2]))} ...` ended with code {error.returncode}, see above",
                remedy="mend what it says and run the same again",
            ) from error

    def config(self, diff_ids: Mapping[str, str]) -> bytes:
        """The image's configuration, given its two layers."""
        labels = {
            **self.keys,
            **versions(self.lock),
            "org.minimind.code": tree_hash(ROOT / "minimind"),
            "org.minimind.lock": sha256_file(self.lock),
            "org.opencontainers.image.title": "minimind-launch",
            "org.opencontainers.image.licenses": "Apache-2.0",
            "org.opencontainers.image.revision": revision(),
            "org.opencontainers.image.created": (now := created(os.environ)),
            "org.opencontainers.image.base.name": self.base.name,
            **({"org.opencontainers.image.base.digest": self.base.digest} if self.base.digest else {}),
        }
        told = {
            DEPENDENCIES_LABEL: f"docker/install.sh dependencies # {self.lock.name}",
            CODE_LABEL: "docker/install.sh code",
        }
        steps = [archive.Step(diff_id=diff_ids[label], told=told[label]) for label in self.keys]
        return archive.configuration(self.base, steps, labels, created=now)


def build_image(recipe: Recipe) -> None:
    """Make ``minimind-launch:<flavour>`` of what the engine lacks."""
    known = recipe.known()
    with tempfile.TemporaryDirectory(dir=recipe.folder, prefix="layers-") as folder:
        made = {label: recipe.make(label, Path(folder)) for label in recipe.keys if label not in known}
        config = recipe.config(known | {label: layer.diff_id for label, layer in made.items()})
        wanted = archive.image_id(config)
        if archive.is_it(inspect(recipe.client, recipe.tag), config):
            print(f"{recipe.tag} is up to date")
        else:
            load(recipe, config, {layer.diff_id: layer for layer in made.values()}, Path(folder))
            if not archive.is_it(inspect(recipe.client, recipe.tag), config):
                raise CannotBuild(
                    f"the engine has another image as {recipe.tag} than it was given",
                    why="its layers or labels differ from what was loaded",
                    remedy=f"{recipe.client} rmi {recipe.tag}, then run the same again",
                )
            keep(recipe.folder / "parts", config, made.get(CODE_LABEL))
            print(f"{recipe.tag} is ready: {wanted}")
    describe(recipe, config)


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


def describe(recipe: Recipe, config: bytes) -> None:
    """Write what is in the image beside it, unless that is there."""
    written = recipe.folder / sbom.FILE
    if written.exists() and archive.image_id(config) in written.read_text():
        return
    collect_wheels(recipe.client, recipe.base_name, recipe.lock, recipe.folder / "wheelhouse")
    wheels = [*sorted((recipe.folder / "wheelhouse").glob("*.whl")), recipe.wheel]
    packages = said([recipe.client, "run", "--rm", "--network", "none", recipe.base_name, *sbom.LIST_PACKAGES])
    sbom.write(written, tag=recipe.tag, config=config, wheels=wheels, packages=packages or "")
    print(f"what is in it: {written.relative_to(ROOT)}")


def load(recipe: Recipe, config: bytes, made: Mapping[str, layers.Layer], folder: Path) -> None:
    """Load the image, with what the engine has already only where it insists.

    Raises:
        CannotBuild: when it does not take even a whole archive.
    """
    if archive.load(recipe.client, config, recipe.tag, made):
        return
    print("the engine wants every layer", flush=True)
    whole = archive.saved_layers(recipe.client, recipe.base_name, folder)
    if not archive.load(recipe.client, config, recipe.tag, {**whole, **made}):
        raise CannotBuild(
            "the engine did not load the image",
            why="what it says stands above",
            remedy="mend that (a full disk?) and run the same again",
        )


def check(recipe: Recipe) -> int:
    """Make both layers twice from nothing and compare them file by file; returns the exit code."""
    with tempfile.TemporaryDirectory(dir=recipe.folder, prefix="check-") as name:
        folders = [Path(name, number) for number in ("1", "2")]
        rounds = []
        for folder in folders:
            folder.mkdir()
            rounds.append({label: recipe.make(label, folder) for label in recipe.keys})
            ids = {label: layer.diff_id for label, layer in rounds[-1].items()}
            print(f"build {folder.name}: {archive.image_id(recipe.config(ids))}", *ids.values(), sep="\n  ", flush=True)
        unlike = [label for label in recipe.keys if rounds[0][label].diff_id != rounds[1][label].diff_id]
        for label in unlike:
            one, two = (made[label].path for made in rounds)
            with open(one, "rb") as first, open(two, "rb") as second:
                print(*layers.differences(layers.contents(first), layers.contents(second)), sep="\n")
    print("NOT identical: the files that differ are listed above" if unlike else "identical, bit for bit")
    return NOT_IDENTICAL if unlike else 0


def main() -> int:
    """Run the command line."""
    parser = argparse.ArgumentParser(description="Make the training image or a local base for it.")
    parser.add_argument("what", choices=["cpu", "cuda", "base"])
    parser.add_argument(
        "--base", help=f"the image to build on (default: {bases.DEFAULT_BASE}, else {bases.LOCAL_BASE})"
    )
    parser.add_argument("--check", action="store_true", help="make it twice from nothing and compare, file by file")
    options = parser.parse_args()
    (ROOT / "build").mkdir(exist_ok=True)
    try:
        client = choose_client()
        with (ROOT / "build" / "image.lock").open("w") as held:
            fcntl.flock(held, fcntl.LOCK_EX)
            if options.what == "base":
                bases.build_base(client)
            elif options.check:
                return check(Recipe.of(client, options.what, options.base))
            else:
                build_image(Recipe.of(client, options.what, options.base))
    except CannotBuild as error:
        sys.stderr.write(f"{error}\n")
        return 5
    return 0


if __name__ == "__main__":
    sys.exit(main())
