"""`launch init`: an annotated launch.toml to begin with."""

from __future__ import annotations

from pathlib import Path

import click

from launch.errors import Exit, LaunchError
from launch.inventory import FILE
from launch.inventory.edit import TEMPLATE
from minimind.rundir import publish


@click.command()
def init() -> None:
    """Write an annotated launch.toml into this folder."""
    path = Path.cwd() / FILE
    if path.exists():
        raise LaunchError(
            f"{path} is there already",
            why="what you wrote into it would be lost",
            remedy="edit it, or use `launch host add NAME --ssh …`",
            code=Exit.REFUSED,
        )
    try:
        publish(path, TEMPLATE.encode(), mode=0o644)
    except OSError as error:
        raise LaunchError(
            f"{path} cannot be written",
            why=error.strerror or str(error),
            remedy="go to a folder of your own",
            code=Exit.INVALID,
        ) from error
    click.echo(f"wrote {path}\nnext: launch host add NAME --ssh user@address:port", err=True)
