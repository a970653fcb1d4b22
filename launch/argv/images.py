"""What an engine is asked about its images."""

from __future__ import annotations

IMAGE = "\n".join(
    (
        "{{json .Id}}",
        "{{.Size}}",
        "{{json .RootFS.Layers}}",
        "{{json .Config}}",
        "{{json .RepoDigests}}",
        "{{.Os}}/{{.Architecture}}",
    )
)


def image(reference: str) -> list[str]:
    """An image's id, size in bytes, layers, settings, names by digest and platform, a line each; fails without one."""
    return ["docker", "image", "inspect", "--format", IMAGE, "--", reference]


def history(image_id: str) -> list[str]:
    """The bytes that each step of an image added, newest first."""
    return ["docker", "history", "--human=false", "--format", "{{.Size}}", image_id]
