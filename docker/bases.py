"""What the image is built on: an official Python by digest, what BASE_IMAGE names, or one made of Debian's packages."""

from __future__ import annotations

import hashlib
import select
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path

import archive
import layers
from engine import CannotBuild, inspect, run, said, words

from minimind.durable import sha256_file

DEFAULT_BASE = "python:3.11-slim-bookworm@sha256:a36c24f9cbdf4fd0f52d67f0823eeac19c2028c637cecc392d97f980d4fec56b"
"""Of 2026-10, for every platform. A newer one is a change of this line."""
LOCAL_BASE = "minimind-base:bookworm"
ANSWER_TIMEOUT_S = 10.0
"""A client prints its first line when the registry has answered."""
PULL_TIMEOUT_S = 300.0


def choose_base(client: str, wanted: str | None) -> str:
    """The base to build on: what was asked for, else the default where it can be had, else one made here.

    Raises:
        CannotBuild: when none can be had.
    """
    name = wanted or DEFAULT_BASE
    if inspect(client, name) is not None:
        return name
    print(f"pulling {name} ...", flush=True)
    refused = pull(client, name)
    if refused is None:
        return name
    print(f"it was not to be had: {refused}", flush=True)
    if wanted is None and inspect(client, LOCAL_BASE) is not None:
        return LOCAL_BASE
    if wanted is None and shutil.which("mmdebstrap"):
        print("making a base from Debian's packages", flush=True)
        return build_base(client)
    raise CannotBuild(
        f"the base image {name} is not here and cannot be pulled",
        why=refused,
        remedy="`make base-image` makes one from Debian's packages; then run this again without BASE_IMAGE",
    )


def pull(client: str, name: str, *, answer_timeout_s: float = ANSWER_TIMEOUT_S) -> str | None:
    """Pull an image; None when it is here, else why not. A registry that does not answer is soon given up."""
    with subprocess.Popen([client, "pull", name], stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        try:
            if not select.select([process.stdout], [], [], answer_timeout_s)[0]:
                return f"no registry answered within {answer_timeout_s:g} s"
            _, told = process.communicate(timeout=PULL_TIMEOUT_S)
            return words(told, process.returncode) if process.returncode else None
        except subprocess.TimeoutExpired:
            return f"it was not here within {PULL_TIMEOUT_S:g} s"
        finally:
            process.kill()


def describe_base(client: str, name: str) -> archive.Base:
    """The base's layers and platform, and the digest that says which base it is."""
    told = inspect(client, name) or {}
    diff_ids = tuple(told["RootFS"]["Layers"])
    return archive.Base(
        name=name.partition("@")[0],
        diff_ids=diff_ids,
        architecture=told["Architecture"],
        os=told["Os"],
        variant=told.get("Variant") or "",
        digest=digest_of(name, told.get("RepoDigests") or [], diff_ids),
    )


def digest_of(name: str, known: Sequence[str], diff_ids: Sequence[str]) -> str:
    """The digest in the name, else the registry's for that name, else OCI's chain id of the layers.

    An engine's own id for an image would not do: some name it by its configuration, some by a manifest of their making.
    """
    plain, _, given = name.partition("@")
    folder, slash, last = plain.rpartition("/")
    repository = f"{folder}{slash}{last.partition(':')[0]}@"
    found = [] if name == LOCAL_BASE else sorted(d for d in known if d.startswith(repository))
    return given or (found[0].removeprefix(repository) if found else chain_id(diff_ids))


def chain_id(diff_ids: Sequence[str]) -> str:
    """What names a stack of layers, lowest first (OCI image specification, config.md, "Layer ChainID")."""
    whole = diff_ids[0]
    for diff_id in diff_ids[1:]:
        whole = f"sha256:{hashlib.sha256(f'{whole} {diff_id}'.encode()).hexdigest()}"
    return whole


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
        try:
            archive.load(client, config, LOCAL_BASE, {layer.diff_id: layer})
        except archive.Refused as error:
            raise CannotBuild(
                "the engine did not load the base", why=str(error), remedy="mend that and run the same again"
            ) from error
    return LOCAL_BASE
