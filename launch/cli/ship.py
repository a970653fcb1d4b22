"""`launch ship-image`: bring the training image to hosts without a registry."""

from __future__ import annotations

import dataclasses
from typing import Any

import click

from launch.cli import session
from launch.errors import Exit, LaunchError
from launch.inventory import Host, Inventory
from launch.ui import paragraph


@click.command()
@click.argument("hosts", nargs=-1, metavar="[HOST]...")
@click.option("--all", "everywhere", is_flag=True, help="To every host of launch.toml that has an engine.")
@click.option("--image", metavar="NAME", help="This image.  [default: the host's, else ours for its GPUs]")
@click.option("--dry-run", is_flag=True, help="Only say what would be sent.")
@session.json_option
def ship_image(hosts: tuple[str, ...], everywhere: bool, image: str | None, dry_run: bool, as_json: bool) -> int:
    """Bring the training image to hosts, sending only the layers that they lack.

    A shipment that was cut goes on where it ended. At its end the image's id on the host is compared with the one here.
    A host with `registry` in launch.toml pulls the image from there, by digest, after it was pushed from here.
    """
    if everywhere == bool(hosts):
        raise click.UsageError("name hosts, or give --all")
    known = session.load()
    chosen = [host for host in known.hosts.values() if host.ssh] if everywhere else [known.host(name) for name in hosts]
    rows, codes = [], []
    for host in chosen:
        try:
            rows.append(_ship(host, known, image, dry_run=dry_run, skip=everywhere))
        except LaunchError as error:
            if len(chosen) == 1:
                raise
            paragraph(error)
            codes.append(int(error.code))
            rows.append({"host": host.name, "error": error.what})
    if as_json:
        session.print_json(rows)
    return codes[0] if codes else 0


def _ship(host: Host, known: Inventory, image: str | None, *, dry_run: bool, skip: bool) -> dict[str, Any]:
    from launch.environment import image as images
    from launch.transport import DryTransport, Transport, connect

    if host.ssh is None:
        raise LaunchError(
            "the image is made on this machine, and local is this machine",
            why="there is nowhere to ship it",
            remedy="launch ship-image HOST",
            code=Exit.USAGE,
        )
    with connect(host, known) as there, connect(known.host("local"), known) as here:
        far: Transport = DryTransport(there, []) if dry_run else there
        site, _ = session.ends(far, here, known).visit(())
        reference = images.tagged(images.reference_of(site) if image is None else image)
        row: dict[str, Any] = {"host": host.name, "image": reference}
        if not site.facts.docker_usable:
            if skip:
                session.terminal.say(f"{host.name} has no Docker engine; left out")
                return row | {"skipped": True}
            raise LaunchError(
                f"{host.name} has no Docker engine that {site.facts.user} may use",
                why="`docker info` did not answer there",
                remedy="start Docker there; a host without it gets a virtual environment by itself when a run starts",
                code=Exit.HOST_NOT_READY,
            )
        found = images.inspect(here, row["image"])
        if found is None:
            raise LaunchError(
                f"there is no image {row['image']} on this machine",
                why="the engine here has none of that name, or does not answer",
                remedy="make image",
                code=Exit.HOST_NOT_READY,
            )
        row["image_id"] = found.id
        arrived = images.inspect(there, row["image"])
        if arrived and arrived.is_same(found):
            session.terminal.say(f"{host.name} has {row['image']} already")
            return row | {"sent_bytes": 0, "layers_sent": 0}
        laptop: Transport = DryTransport(here, []) if dry_run else here
        report = images.shipment(site, found, row["image"]).do(far, laptop, session.terminal)
        if not dry_run:
            session.terminal.say(f"{host.name} has {row['image']} now: {found.id}")
        return row | {"image_bytes": found.bytes, **dataclasses.asdict(report)}
