"""What is in an image, as CycloneDX 1.5: wheels with version and sha256, the base's packages, the layers."""

from __future__ import annotations

import json
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import archive

from minimind.durable import publish, sha256_file

FILE = "sbom.cdx.json"
LIST_PACKAGES = ["dpkg-query", "--show", "--showformat", "${Package}\\t${Version}\\t${Architecture}\\n"]


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


def document(
    *, tag: str, config: bytes, labels: Mapping[str, str], created: str, components: Sequence[Mapping[str, Any]]
) -> dict[str, Any]:
    """The whole document; the same for the same image."""
    image_id = archive.image_id(config)
    return {
        "bomFormat": "CycloneDX",
        "specVersion": "1.5",
        "serialNumber": f"urn:uuid:{uuid.uuid5(uuid.NAMESPACE_URL, image_id)}",
        "version": 1,
        "metadata": {
            "timestamp": created,
            "component": {
                "type": "container",
                "bom-ref": "image",
                "name": tag,
                "version": image_id,
                "hashes": [{"alg": "SHA-256", "content": image_id.removeprefix("sha256:")}],
                "properties": [
                    *({"name": f"layer.{n}", "value": digest} for n, digest in enumerate(archive.diff_ids(config))),
                    *({"name": name, "value": value} for name, value in sorted(labels.items())),
                ],
            },
        },
        "components": sorted(components, key=lambda found: str(found["bom-ref"])),
    }


def write(path: Path, *, tag: str, config: bytes, wheels: Sequence[Path], packages: str) -> None:
    """Publish the document of an image; ``packages`` is what LIST_PACKAGES printed in its base."""
    told = json.loads(config)
    found = [*map(component, wheels), *map(package, packages.splitlines())]
    labels = told["config"]["Labels"]
    whole = document(tag=tag, config=config, labels=labels, created=told["created"], components=found)
    publish(path, (json.dumps(whole, indent=1, sort_keys=True) + "\n").encode(), mode=0o644)
