"""What is installed, compared with the lock: every package by name and version, and every drift named."""

from __future__ import annotations

import contextlib
import json
import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from launch.argv import tidy
from launch.environment import image as images
from launch.environment import virtual
from launch.environment.task import Site
from launch.errors import Exit, LaunchError
from minimind.durable import sha256_file

ENTRY = re.compile(r"^([a-z0-9][a-z0-9._-]*)==([^ ;\\]+)(?: ; ([^\\]+?))? \\$", re.MULTILINE)
TOLERATED = {"pip", "minimind-launch"}
"""What brings packages, and our own: an editable or a wheel of any version of the code."""

PROBE = """
import csv, importlib.metadata, json, os, platform, sys
found, damage = {}, {}
for d in importlib.metadata.distributions():
    name = d.metadata["Name"]
    if not name:
        continue
    found.setdefault(name, []).append(d.version)
    base, missing, other = str(d.locate_file("")), [], []
    for path, _, size in (row for row in csv.reader((d.read_text("RECORD") or "").splitlines()) if len(row) == 3):
        try:
            there = os.stat(os.path.join(base, path)).st_size
        except OSError:
            if not path.endswith(".pyc"):
                missing.append(path)
        else:
            if size.isdecimal() and int(size) != there and not path.startswith(".."):
                other.append(path)
    if missing or other:
        damage[name] = [len(missing), len(other), (missing + other)[:3]]
v = sys.implementation.version
full = "%d.%d.%d" % v[:3] + ("" if v.releaselevel == "final" else v.releaselevel[0] + str(v.serial))
print(json.dumps({"executable": sys.executable, "packages": found, "damage": damage, "markers": {
    "implementation_name": sys.implementation.name, "implementation_version": full, "os_name": os.name,
    "platform_machine": platform.machine(), "platform_python_implementation": platform.python_implementation(),
    "platform_release": platform.release(), "platform_system": platform.system(),
    "platform_version": platform.version(), "python_full_version": platform.python_version(),
    "python_version": ".".join(platform.python_version_tuple()[:2]), "sys_platform": sys.platform}}))
"""
"""Runs in the environment that is looked at, which may have nothing but a standard library.

Files are held against each package's own RECORD by name and size: reading a gigabyte to hash it would take its time.
Bytecode may go at any time, and what lies outside the packages' folder are scripts, which name their interpreter and so
have another size once an environment has been given its final name.
"""


@dataclass(frozen=True, kw_only=True)
class Drift:
    """One package that is not as the lock says; None where one side has none."""

    package: str
    locked: str | None
    installed: str | None
    why: str


@dataclass(frozen=True, kw_only=True)
class Audit:
    """An environment, the lock it was held against, where they differ, and what mends that."""

    where: str
    lock: str
    packages: int
    drifts: tuple[Drift, ...]
    remedy: str | None


def canonical(name: str) -> str:
    """A package's name as locks spell it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def locked(text: str, markers: Mapping[str, str]) -> dict[str, str]:
    """Package -> version that a lock wants where these markers hold."""
    from packaging.markers import Marker

    return {
        name: version
        for name, version, marker in ENTRY.findall(text)
        if not marker or Marker(marker.strip()).evaluate(dict(markers))
    }


def compare(lock: str, told: Mapping[str, Any], *, tolerated: Mapping[str, str]) -> list[Drift]:
    """Every drift of an environment from a lock.

    Args:
        lock: the lock's text.
        told: what PROBE printed there.
        tolerated: packages that may be there too, at these versions.
    """
    wanted = locked(lock, told["markers"])
    found: dict[str, list[str]] = {}
    for name, versions in told["packages"].items():
        found.setdefault(canonical(name), []).extend(versions)
    damage = {canonical(name): _damage(*said) for name, said in told.get("damage", {}).items()}
    cpu_only = told["markers"]["sys_platform"] == "linux" and "+cpu" in lock
    drifts = []
    for name in sorted({*wanted, *found} - TOLERATED):
        version, installed = wanted.get(name), sorted(set(found.get(name, ())))
        if version is None and installed == [tolerated.get(name)]:
            continue
        why = _drift(version, installed, cpu_build=cpu_only if name == "torch" else None) or damage.get(name)
        if why:
            drifts.append(Drift(package=name, locked=version, installed=", ".join(installed) or None, why=why))
    return drifts


def _drift(version: str | None, installed: Sequence[str], *, cpu_build: bool | None) -> str | None:
    if version is None:
        return "not in the lock"
    if not installed:
        return "missing"
    if len(installed) > 1:
        return "there more than once"
    if installed[0].partition("+")[0] != version.partition("+")[0]:
        return "another version"
    if cpu_build is not None and installed[0].endswith("+cpu") is not cpu_build:
        return "the CPU build" if installed[0].endswith("+cpu") else "not the CPU build"
    return None


def _damage(missing: int, other: int, names: Sequence[str]) -> str:
    counted = (f"{missing} of its files missing" if missing else "", f"{other} of another size" if other else "")
    rest = ", …" if missing + other > len(names) else ""
    return f"{', '.join(filter(None, counted))}: {', '.join(names)}{rest}"


def inside(site: Site, argv: Sequence[str]) -> dict[str, Any]:
    """What PROBE says there: the last line that is an answer of its kind; start files of a shell may print others.

    Raises:
        LaunchError: HOST_NOT_READY when there is none.
    """
    text = site.transport.run(argv).text
    for line in reversed(text.splitlines()):
        with contextlib.suppress(ValueError):
            told = json.loads(line)
            if isinstance(told, dict) and all(isinstance(told.get(key), dict) for key in ("packages", "markers")):
                return told
    last = text.strip().splitlines()[-1:]
    said = f"answered {last[0][:200]!r}" if last else "said nothing"
    raise LaunchError(
        f"the environment on {site.host.name} did not say what is in it",
        why=f"its Python ended well and {said}",
        remedy=f"see what that prints on {site.host.name}: {shlex.join([*argv[:-1], 'print(1)'])}",
        code=Exit.HOST_NOT_READY,
    )


def audit(executor: str, site: Site) -> Audit:
    """Look into the environment that a new run on this host would get.

    Raises:
        LaunchError: HOST_NOT_READY when there is none yet.
    """
    if executor == "docker":
        reference = images.reference_of(site)
        found = images.inspect(site.transport, reference)
        if found is None:
            raise _none(site, f"its engine has no image {reference}", f"launch ship-image {site.host.name}")
        argv, where = tidy.packages(found.id, PROBE), f"image {reference}"
        remedy = f"on {site.host.name}: docker rmi --force {found.id}; then here: make image, launch ship-image "
        remedy += site.host.name
        lock = _lock_of(site.here.envs, found.lock_hash, cuda=found.labels.get("org.minimind.cuda", "none") != "none")
    else:
        python, lock_hash, tasks = virtual.find(site)
        if tasks:
            raise _none(site, f"{python} is not there or does not start", f"launch run STAGE --host {site.host.name}")
        argv, where, remedy = [python, "-c", PROBE], python, _remade(site, python, made=lock_hash is not None)
        lock = _lock_of(site.here.envs, lock_hash, cuda=bool(site.facts.gpus))
    told = inside(site, argv)
    beside = [lock.with_name(name) for name in ("dev.lock", "build.lock")]
    tolerated = {
        name: version
        for path in beside
        if executor != "docker" and path.is_file()
        for name, version in locked(path.read_text(), told["markers"]).items()
    }
    drifts = compare(lock.read_text(), told, tolerated=tolerated)
    return Audit(
        where=where,
        lock=lock.name,
        packages=len(told["packages"]),
        drifts=tuple(drifts),
        remedy=remedy if drifts else None,
    )


def _remade(site: Site, python: str, *, made: bool) -> str:
    """How an environment is made anew; one of ours aside, so that a run which lives in it keeps its files till then."""
    name = site.host.name
    if made:
        marker = f"{python.removesuffix('/bin/python')}/.complete"
        return f"on {name}: rm {shlex.quote(marker)}; the next run there makes it anew, aside"
    if site.host.python:
        return f"remove python = {python!r} of {name} from launch.toml: the next run there makes one from the lock"
    return "make this environment anew; in a checkout: rm .venv/.complete && make .venv"


def _lock_of(envs: Path, lock_hash: str | None, *, cuda: bool) -> Path:
    """The lock of this hash, else the one of this flavour: drift from it is what is asked about."""
    known = virtual.locks(envs)
    same = [path for path in known if sha256_file(path) == lock_hash]
    return same[0] if same else known[-1 if cuda else 0]


def _none(site: Site, why: str, remedy: str) -> LaunchError:
    return LaunchError(
        f"there is no environment on {site.host.name} to look into", why=why, remedy=remedy, code=Exit.HOST_NOT_READY
    )
