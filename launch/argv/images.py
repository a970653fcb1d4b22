"""What an engine is asked about its images."""

from __future__ import annotations

IMAGE = "{{json .Id}}\n{{.Size}}\n{{json .Config.Labels}}\n{{json .RootFS.Layers}}"


def image(reference: str) -> list[str]:
    """An image's id, size in bytes, labels and layers, on four lines; fails when there is none."""
    return ["docker", "image", "inspect", "--format", IMAGE, reference]


def history(image_id: str) -> list[str]:
    """The bytes that each step of an image added, newest first."""
    return ["docker", "history", "--human=false", "--format", "{{.Size}}", image_id]
