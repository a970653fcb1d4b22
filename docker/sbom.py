"""What is in an image, as CycloneDX 1.5: wheels with version and sha256, the base's packages, the layers."""

from __future__ import annotations

import contextlib
import json
import uuid
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import archive

from minimind.durable import publish, sha256_file

FILE = "sbom.cdx.json"


def component(wheel: Path) -> dict[str, Any]:
    """One wheel. Its file name has name and version (PEP 427)."""
    name, version = wheel.name.split("-")[:2]
    name = name.replace("_", "-").lower()
    purl = f"pkg:pypi/{name}@{version.replace('+', '%2B')}"
    return {
        "type": "library",
        "bom-ref": purl,
        "name": name,
        "version": version,
        "purl": purl,
        "hashes": [{"alg": "SHA-256", "content": sha256_file(wheel)}],
    }


def package(line: str) -> dict[str, Any]:
    """One package of Debian, from a line of dpkg-query."""
    name, version, architecture = line.split("\t")
    purl = f"pkg:deb/debian/{name}@{version.replace('+', '%2B').replace(':', '%3A')}?arch={architecture}"
    return {"type": "library", "bom-ref": purl, "name": name, "version": version, "purl": purl}


def document(*, tag: str, config: bytes, wheels: Sequence[Path], packages: str) -> bytes:
    """The document of an image, the same for the same image.

    Args:
        tag: the image's name.
        config: its configuration.
        wheels: what was installed.
        packages: what the base told (``container.packages``); of nothing the document says that it is incomplete.
    """
    told, image_id = json.loads(config), archive.image_id(config)
    found = [*map(component, wheels), *map(package, packages.splitlines())]
    whole = {
        "bomFormat": "CycloneDX",
        "specVersion": "1.5",
        "serialNumber": f"urn:uuid:{uuid.uuid5(uuid.NAMESPACE_URL, image_id)}",
        "version": 1,
        "metadata": {
            "timestamp": told["created"],
            "component": {
                "type": "container",
                "bom-ref": "image",
                "name": tag,
                "version": image_id,
                "hashes": [{"alg": "SHA-256", "content": image_id.removeprefix("sha256:")}],
                "properties": [
                    *({"name": f"layer.{n}", "value": digest} for n, digest in enumerate(archive.diff_ids(config))),
                    *({"name": name, "value": value} for name, value in sorted(told["config"]["Labels"].items())),
                ],
            },
        },
        "components": sorted(found, key=lambda one: str(one["bom-ref"])),
        **({} if packages else {"compositions": [{"aggregate": "incomplete", "assemblies": ["image"]}]}),
    }
    return (json.dumps(whole, indent=1, sort_keys=True) + "\n").encode()


def describes(path: Path, image_id: str | None) -> bool:
    """Whether there is a document, and of this image."""
    try:
        return image_id is not None and json.loads(path.read_bytes())["metadata"]["component"]["version"] == image_id
    except (OSError, ValueError, KeyError, TypeError):
        return False


@contextlib.contextmanager
def replaced(path: Path, text: bytes, tagged: Callable[[], str | None]) -> Iterator[None]:
    """Publish a document when the block, which gives its image the tag, ends well.

    Meanwhile there is none: the one of the image before must never stand beside the new one, wherever this is cut off.
    It comes back when the block fails and ``tagged`` tells that its image has the tag still.
    """
    before = path.with_name(f".{path.name}.before")
    if path.exists():
        path.replace(before)
    try:
        yield
    except BaseException:
        if describes(before, tagged()):
            before.replace(path)
        raise
    publish(path, text, mode=0o644)
    before.unlink(missing_ok=True)
