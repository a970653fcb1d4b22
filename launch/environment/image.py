"""The training image: used where it lies, shipped from the laptop where the host lacks it, recognised by its labels."""

from __future__ import annotations

from launch.argv import images
from launch.environment.engine import ANSWERS_S, Image, parse_image
from launch.environment.registry import Passage, Registry
from launch.environment.shipping import Shipment
from launch.environment.spool import Spool
from launch.environment.task import Site, Task
from launch.environment.virtual import locks
from launch.errors import Exit, LaunchError
from launch.executors import Environment
from launch.transport import Transport
from minimind.durable import sha256_file, tree_hash

NAME = "minimind-launch"


def find(site: Site) -> tuple[Image, tuple[Task, ...]]:
    """The image for a new run, and what has to be done first.

    Raises:
        LaunchError: HOST_NOT_READY when neither side has an image of the code that lies here.
    """
    reference = reference_of(site)
    there = inspect(site.transport, reference)
    here = inspect(site.laptop, reference) if site.host.ssh else there
    if here and not _is_ours(here, site):
        here = None
    if there and _is_ours(there, site) and (here is None or here.runs_as(there) or here.platform != there.platform):
        return there, ()
    if here:
        return here, (shipment(site, here, tagged(reference)),)
    places = f"{site.host.name} and this machine" if site.host.ssh else "this machine"
    other = "what has that name was made from other code or another lock"
    raise LaunchError(
        f"there is no image {reference} of the trainers' code as it lies here",
        why=f"looked on {places}; {other if there else 'the name is not known there'}",
        remedy=f"make image FLAVOUR={'cuda' if reference.endswith(':cuda') else 'cpu'}",
        code=Exit.HOST_NOT_READY,
    )


def _is_ours(image: Image, site: Site) -> bool:
    """Whether it says that it was made from the code and one of the locks as they lie here."""
    known = [
        sha256_file(lock) for lock in locks(site.here.envs)
    ]  # either: an image by another name has the flavour that it has
    return image.code_hash == tree_hash(site.here.package) and image.lock_hash in known


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
    result = transport.read(images.image(reference), check=False, timeout_s=ANSWERS_S)
    return parse_image(result.text) if result.code == 0 else None


def shipment(site: Site, image: Image, reference: str) -> Shipment | Passage:
    """Bring an image of this machine to the host: through its registry when it has one, else over the connection.

    Raises:
        LaunchError: INVALID when the registry's secret was not found.
    """
    if site.host.registry:
        return Passage(image=image, reference=reference, registry=Registry.of(site.host, site.inventory.vault))
    beside = site.here.package.parent / "build" / "image" / reference.rpartition(":")[2] / "parts"
    spool = Spool(site.here.cache / "layers", beside)
    return Shipment(image=image, reference=reference, folder=f"{site.root}/images", spool=spool)


def reference_of(site: Site) -> str:
    """The name of the image for a host: the inventory's, else ours in the flavour that fits its GPUs."""
    flavour = "cuda" if site.facts.gpus and site.facts.docker_has_nvidia else "cpu"
    return site.host.image or f"{NAME}:{flavour}"


def tagged(reference: str) -> str:
    """What an image that is shipped is called there: its name with a tag, as engines complete it.

    Raises:
        LaunchError: INVALID for an id or a digest: an image that is loaded gets a name.
    """
    if "@" in reference or reference.startswith(("sha256:", "-")) or not reference:
        raise LaunchError(
            f"{reference or 'nothing'} is no name of an image",
            why="an engine that loads an image gives it a name and a tag",
            remedy=f"tag it: docker tag ID {NAME}:mine; then name {NAME}:mine",
            code=Exit.INVALID,
        )
    return reference if ":" in reference.rpartition("/")[2] else f"{reference}:latest"
