"""Bringing a host's weights and runs home: list, transfer, verify, publish."""

from __future__ import annotations

import contextlib
import dataclasses
import secrets
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from launch.errors import Exit, LaunchError
from launch.inventory import Inventory
from launch.sync.listing import Odd, RemoteFile
from launch.sync.memory import Memory, place
from launch.sync.store import Store
from launch.sync.trip import Trip, records
from launch.transport import Transport, host_path
from launch.voice import Voice


@dataclass(frozen=True, kw_only=True)
class Report:
    """What a sync-out did, or would do: ``files`` are all of the host's, ``fetched`` those that were not here."""

    host: str
    root: str
    folder: Path
    files: tuple[RemoteFile, ...]
    fetched: tuple[RemoteFile, ...]
    left_alone: tuple[Odd, ...]
    weights: bool = True

    @property
    def fetched_bytes(self) -> int:
        """What travels: each content once."""
        return sum({file.sha256: file.length_bytes for file in self.fetched}.values())

    @property
    def check_command(self) -> str:
        """What a person may paste to check everything again."""
        return f"cd {shlex.quote(str(self.folder))} && sha256sum -c SHA256SUMS"

    def to_dict(self) -> dict[str, Any]:
        """For --json."""
        return {
            "host": self.host,
            "root": self.root,
            "to": str(self.folder),
            "files": records(self.files),
            "fetched": [file.path for file in self.fetched],
            "fetched_bytes": self.fetched_bytes,
            "weights": self.weights,
            "left_alone": [dataclasses.asdict(odd) for odd in self.left_alone],
        }


def sync_out(
    transport: Transport,
    inventory: Inventory,
    *,
    folder: Path,
    run_id: str | None,
    voice: Voice,
    now_utc: str,
    dry: bool = False,
    checkpoints_count: bool = False,
    without_weights: bool = False,
    fresh: bool = False,
) -> Report:
    """Mirror the host's out/ and runs/ (or one run and the weights made by it) into ``folder``.

    ``now_utc`` (``%Y%m%dT%H%M%SZ``) names the folder that keeps what is replaced. With ``dry`` nothing is written
    anywhere: the report says what would be fetched. With ``checkpoints_count`` a checkpoint is as good as weights.
    A host without weights is brought home too, and then it is an error unless ``without_weights``.
    What has not been touched since an earlier sync hashed it is not hashed again, unless ``fresh``.

    Raises:
        LaunchError: NOT_VERIFIED without weights, or when a file will not hold still; HOST_NOT_READY without room here;
            REFUSED when another sync writes there, INCOMPLETE when the link broke.
    """
    root = host_path(transport, transport.host.root)
    not_onto_itself(transport, root, folder, dry=dry)
    store = Store(folder, stamp=now_utc, memory=Memory(folder, place(transport.host, root), fresh=fresh))
    trip = Trip(transport, inventory, root, run_id, store, voice)
    try:
        listing = trip.look()
        trip.check(listing)
        weights = trip.has_weights(listing, checkpoints_count=checkpoints_count)
        voice.say(f"comparing {len(listing.files)} files on {transport.host.name}")
        files, unstable = trip.settled(listing.files)
        missing = trip.missing(files)
        trip.room(missing)
        if dry:
            trip.refuse(unstable)
        else:
            with store.locked():
                files = trip.bring(files, missing, unstable)
                if not weights and not without_weights:
                    raise trip.no_weights(len(files))
                trip.finish(files)
    except OSError as error:
        raise unwritable(folder, error) from error
    return Report(
        host=transport.host.name,
        root=root,
        folder=folder,
        files=files,
        fetched=missing,
        left_alone=listing.odd,
        weights=weights,
    )


def unwritable(folder: Path, error: OSError) -> LaunchError:
    """A full disk, a missing permission, a file where a folder should be."""
    return LaunchError(
        f"{folder} cannot be written",
        why=str(error),
        remedy="make room and permissions there, or give another folder with --to; what has arrived is not sent twice",
        code=Exit.HOST_NOT_READY,
    )


def shares(transport: Transport, root: str, folder: Path) -> str | None:
    """Which of out/ and runs/ here is the very folder that the host has, by a link, a network disk, or another name.

    An empty file is made in each for a moment, and looked for on the host. None too where nothing can be made.
    """
    name = f".tmp-{secrets.token_hex(8)}"
    made = []
    try:
        for top in ("out", "runs"):
            with contextlib.suppress(OSError):
                (folder / top / name).touch(exist_ok=False)
                made.append(top)
        look = 'cd "$1" && shift && for mark in "$@"; do if [ -e "$mark" ]; then echo "$mark"; exit; fi; done'
        words = ["sh", "-c", look, "sh", root, *(f"{top}/{name}" for top in made)]
        seen = transport.read(words, check=False).text if made else ""
    finally:
        for top in made:
            (folder / top / name).unlink(missing_ok=True)
    return next((top for top in made if seen == f"{top}/{name}"), None)


def not_onto_itself(transport: Transport, root: str, folder: Path, *, dry: bool) -> None:
    """Refuse to sync a host into what it has itself.

    Raises:
        LaunchError: USAGE.
    """
    if transport.host.ssh is not None:
        same = not dry and shares(transport, root, folder) is not None
    else:
        here, there = folder.resolve(), Path(root).resolve()
        same = here == there or any(here.is_relative_to(there / top) for top in ("out", "runs"))
    if same:
        raise LaunchError(
            f"{folder} cannot be synced onto itself",
            why=f"it is, or lies in, what {transport.host.name} has at {root}",
            remedy="give another folder with --to",
            code=Exit.USAGE,
        )
