"""The training image: used where it lies, shipped from the laptop where the host lacks it, recognised by its labels."""

from __future__ import annotations

import json
from dataclasses import dataclass

from launch.argv import docker
from launch.environment.task import Site, Task
from launch.errors import Exit, LaunchError
from launch.executors import Environment
from launch.transport import Transport, ssh_command, ssh_destination
from launch.voice import Voice
from minimind.durable import tree_hash

NAME = "minimind-launch"


@dataclass(frozen=True, kw_only=True)
class Image:
    """An image as its engine describes it."""

    id: str
    bytes: int
    code_hash: str | None
    lock_hash: str | None


@dataclass(frozen=True, kw_only=True)
class ShipImage:
    """Bring a whole image to the host over ssh."""

    image: Image
    reference: str
    ssh: tuple[str, ...]

    def do(self, transport: Transport, laptop: Transport, voice: Voice) -> None:
        """See :class:`launch.environment.task.Task`."""
        voice.say(f"shipping the image {self.reference} to {transport.host.name} ({self.image.bytes / 1e9:.2f} GB)")
        laptop.run(docker.ship(self.reference, ssh=self.ssh))
        result = transport.run(docker.same_image(self.reference, self.image.id), check=False)
        if result.code:
            raise LaunchError(
                f"the image that arrived on {transport.host.name} is not the one that was sent",
                why=f"its engine does not know {self.image.id} as {self.reference}",
                remedy="run the same command again; an engine with another image store may need `make image` there",
                code=Exit.NOT_VERIFIED,
            )


def find(site: Site) -> tuple[Image, tuple[Task, ...]]:
    """The image for a new run, and what has to be done first.

    Raises:
        LaunchError: HOST_NOT_READY when neither side has an image of the code that lies here.
    """
    flavour = "cuda" if site.facts.gpus and site.facts.docker_has_nvidia else "cpu"
    reference = site.host.image or f"{NAME}:{flavour}"
    code_hash = tree_hash(site.here.package)
    there = inspect(site.transport, reference)
    if there and there.code_hash == code_hash:
        return there, ()
    here = inspect(site.laptop, reference) if site.host.ssh else there
    if here and here.code_hash == code_hash:
        ssh = (*ssh_command(site.host, site.inventory), ssh_destination(site.host))
        return here, (ShipImage(image=here, reference=reference, ssh=ssh),)
    places = f"{site.host.name} and this machine" if site.host.ssh else "this machine"
    raise LaunchError(
        f"there is no image {reference} of the trainers' code as it lies here",
        why=f"{places} have one of other code" if there or here else f"{places} have none of that name",
        remedy=f"make image FLAVOUR={flavour}",
        code=Exit.HOST_NOT_READY,
    )


def recall(site: Site, wanted: Environment) -> Environment:
    """The image of an earlier run, by its id.

    Raises:
        LaunchError: HOST_NOT_READY when the host no longer has it.
    """
    if wanted.image_id and inspect(site.transport, wanted.image_id):
        return wanted
    raise LaunchError(
        f"the image that this run was started with is no longer on {site.host.name}",
        why=f"its engine does not know {wanted.image_id}",
        remedy="load it again there, or start a new run from its weights: launch run … -- --from_weight NAME",
        code=Exit.HOST_NOT_READY,
    )


def inspect(transport: Transport, reference: str) -> Image | None:
    """What an engine knows of an image; None when it has none of that name, or does not answer."""
    result = transport.read(docker.image(reference), check=False)
    if result.code:
        return None
    image_id, length_bytes, labels = result.text.splitlines()[:3]
    told = json.loads(labels) or {}
    return Image(
        id=json.loads(image_id),
        bytes=int(length_bytes),
        code_hash=told.get(docker.CODE_LABEL),
        lock_hash=told.get(docker.LOCK_LABEL),
    )
