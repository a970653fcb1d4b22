"""What this machine keeps packed for hosts, so that it is packed once: how much it is, and letting go of it."""

from __future__ import annotations

import contextlib
import json
import shutil
import time
from collections.abc import Iterable, Mapping
from pathlib import Path

FRESH_S = 3600.0
"""What is younger may be part of a shipment that is being packed now."""


class Larder:
    """The launcher's cache folder: ``layers/`` of images in packed chunks, ``wheels/`` for hosts without an index."""

    def __init__(self, cache: Path) -> None:
        self._layers, self._wheels = cache / "layers", cache / "wheels"

    def layers(self) -> Mapping[str, int]:
        """Bytes of each packed layer, by diff id; a chunk that two of them share counts for both."""
        return {f"sha256:{path.stem}": sum(map(self._bytes, names)) for path, names in self._chunk_names().items()}

    def wheels(self) -> Mapping[str, int]:
        """Bytes of each folder of wheels, by the beginning of its lock's hash."""
        return {
            path.name: sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
            for path in sorted(self._wheels.glob("*"))
            if path.is_dir()
        }

    def loose(self) -> Mapping[Path, int]:
        """Files that belong to no packed layer, with their bytes: what a killed shipment left, and its small notes."""
        used = {name for names in self._chunk_names().values() for name in names}
        found = {}
        for path in self._layers.glob("*"):
            kind = path.suffix if path.suffix != ".json" else Path(path.stem).suffix
            chunk = kind in (".zst", ".gz", ".raw", ".tmp") and path.name.partition(".")[0] not in used
            with contextlib.suppress(FileNotFoundError):
                told = path.stat()
                if chunk and time.time() - told.st_mtime > FRESH_S:
                    found[path] = told.st_size
        return found

    def drop_layers(self, diff_ids: Iterable[str]) -> None:
        """Let go of packed layers, and of chunks that no other layer has."""
        before = {name for names in self._chunk_names().values() for name in names}
        for diff_id in diff_ids:
            (self._layers / f"{diff_id.removeprefix('sha256:')}.layer").unlink(missing_ok=True)
        unused = before - {name for names in self._chunk_names().values() for name in names}
        for path in self._layers.glob("*"):
            if path.name.partition(".")[0] in unused and path.suffix not in (".layer", ".config", ".named"):
                path.unlink(missing_ok=True)

    def drop_loose(self) -> None:
        """Let go of what belongs to no layer."""
        for path in self.loose():
            path.unlink(missing_ok=True)

    def drop_wheels(self, names: Iterable[str]) -> None:
        """Let go of folders of wheels."""
        for name in names:
            shutil.rmtree(self._wheels / name, ignore_errors=True)

    def _chunk_names(self) -> Mapping[Path, list[str]]:
        found = {}
        for path in sorted(self._layers.glob("*.layer")):
            with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
                found[path] = [str(name) for name in json.loads(path.read_bytes())["chunks"]]
        return found

    def _bytes(self, chunk: str) -> int:
        return sum(
            path.stat().st_size for kind in ("zst", "gz", "raw") for path in self._layers.glob(f"{chunk}.{kind}")
        )
