"""What the image is built on: an official Python by digest, what BASE_IMAGE names, or one made of Debian's packages."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

import archive
import layers
from engine import CannotBuild, inspect, run, said

from minimind.durable import sha256_file

DEFAULT_BASE = "python:3.11-slim-bookworm@sha256:a36c24f9cbdf4fd0f52d67f0823eeac19c2028c637cecc392d97f980d4fec56b"
"""Of 2026-10, for every platform. A newer one is a change of this line."""
LOCAL_BASE = "minimind-base:bookworm"
PULL_TIMEOUT_S = 300.0


def choose_base(client: str, wanted: str | None) -> str:
    """The base to build on: what was asked for, else the default where it can be had, else one made here.

    Raises:
        CannotBuild: when none can be had.
    """
    for candidate in [wanted] if wanted else [DEFAULT_BASE, LOCAL_BASE]:
        if said([client, "image", "inspect", candidate]) is not None:
            return candidate
    name = wanted or DEFAULT_BASE
    print(f"pulling {name} ...", flush=True)
    if said([client, "pull", name], timeout_s=PULL_TIMEOUT_S) is not None:
        return name
    if wanted is None and shutil.which("mmdebstrap"):
        print("no registry gave it; making a base from Debian's packages", flush=True)
        return build_base(client)
    raise CannotBuild(
        f"the base image {name} is not here and cannot be pulled",
        why="no registry has it or none can be reached",
        remedy="`make base-image` makes one from Debian's packages; then run this again without BASE_IMAGE",
    )


def describe_base(client: str, name: str) -> archive.Base:
    """The base's layers and platform."""
    told = inspect(client, name) or {}
    digests = told.get("RepoDigests") or []
    return archive.Base(
        name=name.partition("@")[0],
        diff_ids=tuple(told["RootFS"]["Layers"]),
        architecture=told["Architecture"],
        os=told["Os"],
        variant=told.get("Variant") or "",
        digest=digests[0].partition("@")[2] if digests else None,
    )


def build_base(client: str) -> str:
    """Make a base from Debian's packages, for machines that reach those but no registry."""
    if inspect(client, LOCAL_BASE) is not None:
        print(f"{LOCAL_BASE} is there (to make it anew: {client} rmi {LOCAL_BASE})")
        return LOCAL_BASE
    if shutil.which("mmdebstrap") is None:
        raise CannotBuild("there is no mmdebstrap here", why="it makes the base", remedy="apt install mmdebstrap")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "base.tar"
        packages = "--include=python3,python3-venv,ca-certificates"
        run(["mmdebstrap", "--quiet", "--variant=minbase", packages, "bookworm", str(path)], SOURCE_DATE_EPOCH="0")
        layer = layers.Layer(path=path, diff_id=f"sha256:{sha256_file(path)}", bytes=path.stat().st_size)
        config = archive.bare_configuration(
            layer.diff_id,
            architecture=said([client, "version", "--format", "{{.Server.Arch}}"]) or "amd64",
            environment={"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"},
            created="1970-01-01T00:00:00Z",
        )
        if not archive.load(client, config, LOCAL_BASE, {layer.diff_id: layer}):
            raise CannotBuild("the engine did not load the base", why="what it says stands above", remedy="mend that")
    return LOCAL_BASE
