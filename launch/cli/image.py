"""`launch image`: training images on hosts, verified, listed, removed."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import click

from launch.cli import session
from launch.errors import Exit

HOST = click.argument("host", default="local")


@click.group()
def image() -> None:
    """Verify, list or remove training images on a host."""


@image.command()
@click.argument("host")
@click.option("--sbom", type=click.Path(path_type=Path), help="Compare with this bill of materials.")
@session.json_option
def verify(host: str, sbom: Path | None, as_json: bool) -> int:
    """Compare the image on HOST with the one here or with its bill of materials; exit 8 where it is another."""
    from launch.cli.tidying import looked_at
    from launch.environment import image as images
    from launch.environment import proof
    from launch.ui import table

    with looked_at(host) as site:
        reference = images.reference_of(site)
        there, found = proof.verify(site, reference, sbom and (Path.cwd() / sbom))
    if as_json:
        rows = [dataclasses.asdict(difference) for difference in found]
        session.print_json({"host": host, "image": reference, "image_id": there.id, "differences": rows})
    elif found:
        table(("what", "here", host), [(d.what, d.here, d.there) for d in found])
    verdict = f"differs in {len(found)} things" if found else "is the same"
    session.terminal.say(f"{reference} on {host} {verdict}: {there.id}")
    return int(Exit.NOT_VERIFIED if found else Exit.OK)


@image.command("list")
@HOST
@session.json_option
def list_(host: str, as_json: bool) -> int:
    """Show training images on HOST, their sizes and who needs them; of `local` also what is kept packed for hosts."""
    from launch.cli import tidying
    from launch.runs import tidy

    return tidying.show(host, tidy.engine_images, as_json=as_json)


@image.command()
@HOST
@click.option("--yes", is_flag=True, help="Remove; without it nothing is changed.")
@session.json_option
def prune(host: str, yes: bool, as_json: bool) -> int:
    """Remove training images on HOST that neither their name nor an unfinished run or a container needs.

    Of `local` also packed layers of images that are no longer here.
    """
    from launch.cli import tidying
    from launch.runs import tidy

    return tidying.prune(host, tidy.engine_images, really=yes, as_json=as_json)
