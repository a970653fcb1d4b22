"""`launch versions` and `launch restore`: what earlier syncs brought, and getting it back."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import click

from launch.cli import session
from launch.errors import Exit, LaunchError
from launch.ui import table

COLUMNS = ("version", "host", "run_id", "files", "bytes", "weights")
folder_option = click.option(
    "--folder", type=click.Path(path_type=Path), help="The folder that was synced into.  [default: home]"
)


@click.command()
@click.argument("version", required=False)
@folder_option
@click.option("--keep", type=click.IntRange(1), metavar="N", help="Let go of all but the newest N that verify.")
@session.json_option
def versions(version: str | None, folder: Path | None, keep: int | None, as_json: bool) -> int:
    """Show what each sync-out brought; with VERSION its files, hashed now. The exit code is 8 when some are gone.

    --keep never lets go of the newest version that verifies, nor of what no version knows.
    """
    from launch.sync import generations
    from launch.sync.store import Store

    place = _place(folder)
    if version is not None:
        if keep is not None:
            raise click.UsageError("--keep is about all versions: give it without VERSION")
        return _files(place, version, as_json=as_json)
    if keep is not None:
        try:
            store = Store(place, stamp="keep")
            with store.locked():
                dropped, freed_bytes = generations.let_go(store, keep)
        except OSError as error:
            raise LaunchError(
                f"{place} cannot be written", why=str(error), remedy="make it writable", code=Exit.HOST_NOT_READY
            ) from error
        session.terminal.say(f"let go of {', '.join(dropped) or 'nothing'}; {freed_bytes} bytes are free again")
    rows = [generation.to_dict() for generation in generations.read(place)]
    if as_json:
        session.print_json(rows)
    elif rows:
        cells = [{**row, "weights": ", ".join(row["weights"][:4])} for row in rows]
        table(COLUMNS, [[row[column] for column in COLUMNS] for row in cells])
    else:
        session.terminal.say(f"nothing was synced into {place}; do it with `launch sync-out`")
    return 0


def _files(place: Path, version: str, *, as_json: bool) -> int:
    from launch.sync import generations

    rows = []
    for file in generations.find(place, version).files:
        holder = generations.holder(place, file)
        rows.append({**dataclasses.asdict(file), "held_by": None if holder is None else str(holder.relative_to(place))})
    if as_json:
        session.print_json(rows)
    else:
        table(
            ("bytes", "path", "held by"), [(row["length_bytes"], row["path"], row["held_by"] or "GONE") for row in rows]
        )
    return int(Exit.NOT_VERIFIED if any(row["held_by"] is None for row in rows) else Exit.OK)


@click.command()
@click.argument("version")
@click.argument("paths", nargs=-1, metavar="[PATH]...")
@folder_option
@click.option("--to", type=click.Path(path_type=Path), help="Into this folder.  [default: restored/VERSION]")
@session.json_option
def restore(version: str, paths: tuple[str, ...], folder: Path | None, to: Path | None, as_json: bool) -> int:
    """Copy VERSION, or the named files and folders of it, into a folder of its own; every byte verified."""
    from launch.sync import generations
    from launch.sync.home import unwritable

    place = _place(folder)
    generation = generations.find(place, version)
    target = (Path.cwd() / to) if to else place / "restored" / version
    try:
        files = generations.restore(place, generation, paths, target)
    except OSError as error:
        raise unwritable(target, error) from error
    session.terminal.say(f"{len(files)} files of {version} are in {target}, verified")
    if as_json:
        session.print_json({"to": str(target), "files": [file.path for file in files]})
    return 0


def _place(folder: Path | None) -> Path:
    return Path.cwd() / folder if folder else session.load().home
