"""Copying, time after time, only what is finished: checkpoints, exports and weights, and with them the logs so far."""

from __future__ import annotations

import re
from pathlib import Path

from launch.inventory import Inventory
from launch.sync.home import not_onto_itself, unwritable
from launch.sync.listing import RemoteFile
from launch.sync.memory import Memory, place
from launch.sync.store import Store
from launch.sync.trip import Trip
from launch.transport import Transport, host_path
from launch.voice import Voice

FINISHED = re.compile(r"out/.+|runs/[^/]+/(?:export/.+|ckpt/step-\d{8}/.+|spec\.json|env\.json)")


class Rounds:
    """What has come home so far; ``run_id`` None means every run of the host."""

    def __init__(self, inventory: Inventory, folder: Path, run_id: str | None, voice: Voice) -> None:
        self.folder, self.run_id = folder, run_id
        self._inventory, self._voice = inventory, voice
        self._seen: dict[str, str] = {}
        self._home: dict[str, RemoteFile] = {}

    def bring(self, transport: Transport, *, now_utc: str) -> list[str]:
        """Copy what is finished and new since the last round; returns its paths. SHA256SUMS speaks of it then.

        What does not change keeps its stamp, so a round without news costs one listing.

        Raises:
            LaunchError: as sync_out does.
        """
        root = host_path(transport, transport.host.root)
        not_onto_itself(transport, root, self.folder, dry=False)
        store = Store(self.folder, stamp=now_utc, memory=Memory(self.folder, place(transport.host, root)))
        trip = Trip(transport, self._inventory, root, self.run_id, store, self._voice)
        try:
            listing = trip.look()
            finished = [file for file in listing.files if FINISHED.fullmatch(file.path)]
            news = [file for file in finished if self._seen.get(file.path) != file.stamp]
            if not any(file.weights or file.checkpoint for file in news):
                return []
            logs = [file for file in listing.files if file.grows]
            files, unstable = trip.settled([*news, *logs])
            missing = trip.missing(files)
            trip.room(missing)
            with store.locked():
                files = trip.bring(files, missing, unstable)
                self._home |= {file.path: file for file in files}
                trip.finish(tuple(self._home.values()), remember=False)
        except OSError as error:
            raise unwritable(self.folder, error) from error
        self._seen |= {file.path: file.stamp for file in files}
        return [file.path for file in missing]
