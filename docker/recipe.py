"""Everything that decides the image: the lock, our own wheel, the base, the commit and its time."""

from __future__ import annotations

import hashlib
import os
import platform
import re
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import archive
import bases
import container
import layers
from engine import ROOT, USAGE, CannotBuild, inspect, run, said

from minimind.durable import sha256_file, tree_hash

OLDEST_DRIVER = {"13": "580.65.06", "12": "525.60.13"}
"""Major version of CUDA -> NVIDIA's oldest Linux driver for all its minor versions (release notes of the toolkit)."""
DEPENDENCIES_LABEL, CODE_LABEL = "org.minimind.dependencies", "org.minimind.inputs"
REVISION_LABEL = "org.opencontainers.image.revision"
MAKE_ROOM = "make room: twice the unpacked image beside its wheels, three times for image-check; run the same again"
INSTALLER = Path(__file__).resolve().parent / "install.sh"


def collect_wheels(client: str, base: str, lock: Path, wheelhouse: Path) -> None:
    """Fill the wheelhouse for Python 3.11 on Linux."""
    arguments = ["envs/install.py", "--download", os.path.relpath(wheelhouse, ROOT), "--lock", f"envs/{lock.name}"]
    if platform.system() == "Linux" and sys.version_info[:2] == (3, 11):
        return run([sys.executable, *arguments])
    as_me = ["--user", f"{os.getuid()}:{os.getgid()}", "--env", "HOME=/tmp", "--workdir", "/repository"]
    mounted = ["--volume", f"{ROOT}/envs:/repository/envs:ro", "--volume", f"{ROOT}/build:/repository/build"]
    return run([client, "run", "--rm", *as_me, *mounted, "--entrypoint", "python3", base, *arguments])


def build_wheel(dist: Path) -> Path:
    """Our own wheel, alone in its folder; the same bytes for the same files."""
    shutil.rmtree(dist, ignore_errors=True)
    dist.mkdir()
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
    """SOURCE_DATE_EPOCH, else the commit's time, as an image's configuration writes it.

    Raises:
        CannotBuild: USAGE when SOURCE_DATE_EPOCH is no time.
    """
    told = environ.get("SOURCE_DATE_EPOCH")
    try:
        if told and not re.fullmatch("[0-9]+", told):
            raise ValueError("it is not a whole number")
        commit = None if told else said(["git", "-C", str(ROOT), "log", "-1", "--format=%ct"])
        time = datetime.fromtimestamp(int(told or commit or layers.MTIME_S), UTC)
    except (ValueError, OverflowError, OSError) as error:
        raise CannotBuild(
            f"SOURCE_DATE_EPOCH is {told!r}",
            why=f"{error}; it is the image's time in seconds since 1970",
            remedy="give it a number, or unset it: then the commit's time is taken",
            code=USAGE,
        ) from error
    return time.strftime("%Y-%m-%dT%H:%M:%SZ")


def look_for_room(wheels: Sequence[Path], folder: Path) -> None:
    """Refuse at once what would fill the disk after minutes of installing.

    Raises:
        CannotBuild: when the unpacked wheels do not fit twice: as they are taken out, and as a layer.
    """
    needed_bytes = 2 * sum(file.file_size for wheel in wheels for file in zipfile.ZipFile(wheel).infolist())
    free_bytes = shutil.disk_usage(folder).free
    if free_bytes < needed_bytes:
        raise CannotBuild(
            "there is no room for the image's layers",
            why=f"they need more than {needed_bytes / 1e9:.1f} GB in build/, and {free_bytes / 1e9:.1f} GB are free",
            remedy=MAKE_ROOM,
        )


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
    """All of it, looked up once a build."""

    client: str
    flavour: str
    tag: str
    base_name: str
    base: archive.Base
    lock: Path
    wheel: Path
    folder: Path
    created: str

    @classmethod
    def of(cls, client: str, flavour: str, wanted_base: str | None, *, folder: Path | None = None) -> Recipe:
        """Look at the tree and at the engine; makes our own wheel, in a folder that nobody else may use."""
        now = created(os.environ)
        folder = folder or ROOT / "build" / "image" / flavour
        folder.mkdir(parents=True, exist_ok=True)
        name = bases.choose_base(client, wanted_base)
        base = bases.describe_base(client, name)
        print(f"base image: {base.name}, {base.digest}", flush=True)
        return cls(
            client=client,
            flavour=flavour,
            tag=f"minimind-launch:{flavour}",
            base_name=name,
            base=base,
            lock=ROOT / "envs" / f"{flavour}.lock",
            wheel=build_wheel(folder / "dist"),
            folder=folder,
            created=now,
        )

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

    def wheels(self) -> list[Path]:
        """Every wheel that goes into the image, collected where that was not done."""
        collect_wheels(self.client, self.base_name, self.lock, self.folder / "wheelhouse")
        return [*sorted((self.folder / "wheelhouse").glob("*.whl")), self.wheel]

    def make(self, label: str, folder: Path) -> layers.Layer:
        """Install into a container of the base and write the layer."""
        what, wheels, paths = "code", self.wheel.parent, ["/opt/minimind"]
        if label == DEPENDENCIES_LABEL:
            what, wheels = "dependencies", self.folder / "wheelhouse"
            paths += ["/etc/group", "/etc/passwd", "/home/minimind"]
            look_for_room(self.wheels()[:-1], folder)
        target = folder / f"{what}.tar"
        try:
            return container.installed(
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
            REVISION_LABEL: revision(),
            "org.opencontainers.image.created": self.created,
            "org.opencontainers.image.base.name": self.base.name,
            "org.opencontainers.image.base.digest": self.base.digest,
        }
        told = {
            DEPENDENCIES_LABEL: f"docker/install.sh dependencies # {self.lock.name}",
            CODE_LABEL: "docker/install.sh code",
        }
        steps = [archive.Step(diff_id=diff_ids[label], told=told[label]) for label in self.keys]
        return archive.configuration(self.base, steps, labels, created=self.created)
