"""Packed chunks of layers: what travels. A chunk is named by what it holds, so it is packed once and sent once."""

from __future__ import annotations

import contextlib
import gzip
import hashlib
import json
import os
import secrets
import subprocess
import threading
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from queue import Full, Queue
from typing import IO, Self

from launch.argv import ship
from minimind.durable import sha256_file, to_json

CHUNK_BYTES = 64 << 20
"""Of a layer before packing: what has to be packed before the first byte can leave, and what a kill may repeat."""
SAMPLES, SAMPLE_BYTES = 8, 1 << 17
PAYS_BELOW = 0.95
"""Packed over plain, measured on samples with the fastest level: above it a chunk goes as it is."""
AHEAD = 4
"""Chunks that wait to be sent while the next one is packed."""


@dataclass(frozen=True, kw_only=True)
class Packed:
    """A file to send: ``kind`` is zst, gz or raw; ``plain_bytes`` what it unpacks to."""

    kind: str
    path: Path
    sha256: str
    bytes: int
    plain_bytes: int

    @property
    def name(self) -> str:
        """Its name on the way and on the host: what it holds and how."""
        return f"{self.sha256}.{self.kind}"


@contextlib.contextmanager
def keeping(path: Path) -> Iterator[IO[bytes]]:
    """A file of the cache to write, which gets its name when the block ends well.

    It is not forced to the disk: that would hold up the sending, and what a power cut spoils is found by its hash.
    """
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        with open(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
            yield file
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


class Chunks:
    """A folder of packed chunks, found again by the sha256 of what they unpack to."""

    def __init__(self, folder: Path) -> None:
        self.folder, self._believed = folder, set[Path]()

    def find(self, plain_sha256: str, kind: str) -> Packed | None:
        """A chunk packed earlier, for a host that can unpack ``kind``; its bytes are looked at once."""
        for candidate in (kind, "raw"):
            path = self._file(plain_sha256, candidate)
            try:
                told = json.loads(path.with_name(f"{path.name}.json").read_bytes())
                found = Packed(path=path, kind=candidate, **told)
                if path.stat().st_size != found.bytes:
                    continue
                if path not in self._believed and sha256_file(path) != found.sha256:
                    continue
                self._believed.add(path)
                return found
            except (OSError, ValueError, TypeError):
                continue
        return None

    def pack(self, plain: bytes, kind: str) -> Packed:
        """Pack a chunk, unless that was done before.

        Raises:
            OSError: when it cannot be written or packed.
        """
        digest = hashlib.sha256(plain).hexdigest()
        if found := self.find(digest, kind):
            return found
        steps = range(0, len(plain), max(1, len(plain) // SAMPLES))
        sample = b"".join(plain[at : at + SAMPLE_BYTES] for at in steps)
        if len(zlib.compress(sample, 1)) > PAYS_BELOW * len(sample):
            kind = "raw"
        path = self._file(digest, kind)
        with keeping(path) as file:
            _pack(plain, kind, file)
        packed_bytes, sha256 = path.stat().st_size, sha256_file(path)
        with keeping(path.with_name(f"{path.name}.json")) as file:
            file.write(to_json({"sha256": sha256, "bytes": packed_bytes, "plain_bytes": len(plain)}))
        self._believed.add(path)
        return Packed(path=path, kind=kind, sha256=sha256, bytes=packed_bytes, plain_bytes=len(plain))

    def forget(self, chunk: Packed) -> None:
        """Remove a chunk that nobody wants."""
        for path in (chunk.path.with_name(f"{chunk.path.name}.json"), chunk.path):
            path.unlink(missing_ok=True)

    def _file(self, digest: str, kind: str) -> Path:
        return self.folder / f"{digest}.{kind}"


def _pack(plain: bytes, kind: str, file: IO[bytes]) -> None:
    if kind == "raw":
        file.write(plain)
    elif kind == "gz":
        with gzip.GzipFile(filename="", fileobj=file, mode="wb", compresslevel=1, mtime=0) as packer:
            packer.write(plain)
    else:
        done = subprocess.run(ship.compress(), input=plain, stdout=file, check=False)
        if done.returncode:
            raise OSError(f"zstd ended with code {done.returncode}")


class Ahead:
    """What an iterator gives, made by a thread of its own up to ``AHEAD`` items before they are taken."""

    def __init__(self, source: Iterable[Packed]) -> None:
        self._source = source
        self._made: Queue[Packed | BaseException | None] = Queue(AHEAD)
        self._unwanted = threading.Event()
        self._thread = threading.Thread(target=self._work, daemon=True)

    def _work(self) -> None:
        source = iter(self._source)
        try:
            for item in source:
                if not self._give(item):
                    break
            self._give(None)
        except BaseException as error:  # of whatever kind: whoever takes the next item has it
            self._give(error)
        finally:
            if (close := getattr(source, "close", None)) is not None:
                close()

    def _give(self, item: Packed | BaseException | None) -> bool:
        while not self._unwanted.is_set():
            try:
                self._made.put(item, timeout=0.1)
                return True
            except Full:
                continue
        return False

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __iter__(self) -> Iterator[Packed]:
        while (item := self._made.get()) is not None:
            if isinstance(item, BaseException):
                raise item
            yield item

    def __exit__(self, *_: object) -> None:
        self._unwanted.set()
        self._thread.join(10)
