"""Layers of this machine's images, packed for the way and kept by name, so that nothing is packed twice.

An engine gives away whole images only: the archive is read as it comes, and what is not wanted is passed over.
"""

from __future__ import annotations

import hashlib
import io
import json
import secrets
import subprocess
import tarfile
import zlib
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, cast

from launch.argv import ship
from launch.errors import Exit, LaunchError
from launch.transport import Transport
from minimind.durable import publish, publishing, sha256_file, to_json

SAMPLE_BYTES = 4 << 20
PAYS_BELOW = 0.95
"""Packed over plain, measured on a sample with the fastest level: above it a layer goes as it is."""
SMALL_BYTES = 4 << 20
BLOCK_BYTES = 1 << 20


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


class _Reader(io.RawIOBase):
    """Chunks as a file that can be read once."""

    def __init__(self, chunks: Iterator[bytes]) -> None:
        self._chunks, self._rest = chunks, b""

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: object) -> int:
        view = memoryview(cast(bytearray, buffer))
        data = self._rest or next(self._chunks, b"")
        count = min(len(view), len(data))
        view[:count] = data[:count]
        self._rest = data[count:]
        return count


class Spool:
    """A folder of packed layers and image configurations.

    ``beside`` may have the parts of an image that was made here, ``<digest>.tar`` and ``<digest>.config``: they spare
    reading the whole image for the sake of its smallest layer.
    """

    def __init__(self, folder: Path, beside: Path | None = None) -> None:
        self.folder, self._beside = folder, beside

    def layer(self, diff_id: str, kind: str) -> Packed | None:
        """A layer packed earlier, for a host that can unpack ``kind``."""
        for candidate in (kind, "raw"):
            try:
                told = json.loads(self._file(diff_id, candidate).with_suffix(f".{candidate}.json").read_bytes())
                found = Packed(path=self._file(diff_id, candidate), kind=candidate, **told)
            except (OSError, ValueError, TypeError):
                continue
            if found.path.is_file() and found.path.stat().st_size == found.bytes:
                return found
        return None

    def config(self, image_id: str) -> bytes | None:
        """The configuration of an image packed earlier."""
        try:
            data = self._file(image_id, "config").read_bytes()
        except OSError:
            return None
        return data if f"sha256:{hashlib.sha256(data).hexdigest()}" == image_id else None

    def note(self, data: bytes) -> Packed:
        """A small file of the archive."""
        digest = hashlib.sha256(data).hexdigest()
        path = self.folder / f"{digest}.raw"
        publish(path, data)
        return Packed(kind="raw", path=path, sha256=digest, bytes=len(data), plain_bytes=len(data))

    def fill(self, laptop: Transport, image_id: str, wanted: Mapping[str, int | None], *, kind: str) -> None:
        """Pack what is missing of these layers, and the image's configuration.

        Args:
            laptop: this machine.
            image_id: the image that has them.
            wanted: diff id -> bytes of its files where that is known, which spares packing what cannot be it.
            kind: how to pack.

        Raises:
            LaunchError: HOST_NOT_READY when the engine here does not give them, or this disk is full.
        """
        missing = {diff_id: size for diff_id, size in wanted.items() if self.layer(diff_id, kind) is None}
        if not missing and self.config(image_id) is not None:
            return
        try:
            self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            self._take(image_id, missing, kind)
            missing = {diff_id: size for diff_id, size in missing.items() if self.layer(diff_id, kind) is None}
            if missing or self.config(image_id) is None:
                self._read(laptop, image_id, missing, kind)
        except (OSError, tarfile.TarError) as error:
            raise LaunchError(
                "the image could not be packed on this machine",
                why=str(error) or "the engine's archive ended early",
                remedy=f"make room for it in {self.folder}, see whether `docker save` works here, and run this again",
                code=Exit.HOST_NOT_READY,
            ) from error
        lacking = [diff_id for diff_id in missing if self.layer(diff_id, kind) is None]
        if lacking or self.config(image_id) is None:
            raise LaunchError(
                f"the engine here does not give away {lacking[0] if lacking else 'the configuration of ' + image_id}",
                why="its archive does not hold these bytes; other image stores write layers anew",
                remedy="make the image with an engine that keeps layers as they are (overlay2), then run this again",
                code=Exit.HOST_NOT_READY,
            )

    def _take(self, image_id: str, missing: Iterable[str], kind: str) -> None:
        """Pack what lies beside the code."""
        if self._beside is None:
            return
        for diff_id in missing:
            path = self._beside / f"{diff_id.removeprefix('sha256:')}.tar"
            if path.is_file():
                with open(path, "rb") as data:
                    self._pack(data, kind, {diff_id})
        path = self._beside / f"{image_id.removeprefix('sha256:')}.config"
        if path.is_file():
            publish(self._file(image_id, "config"), path.read_bytes())

    def _read(self, laptop: Transport, image_id: str, missing: Mapping[str, int | None], kind: str) -> None:
        least = None if None in missing.values() else sum(size or 0 for size in missing.values())
        stream = io.BufferedReader(_Reader(laptop.stream(ship.save(image_id))), BLOCK_BYTES)
        with tarfile.open(fileobj=stream, mode="r|") as tar:
            for member in tar:
                data = tar.extractfile(member) if member.isreg() else None
                if data is None:
                    continue
                if member.size <= SMALL_BYTES:
                    small = data.read()
                    digest = f"sha256:{hashlib.sha256(small).hexdigest()}"
                    if digest == image_id:
                        publish(self._file(image_id, "config"), small)
                    if digest in missing:
                        self._pack(io.BytesIO(small), kind, missing)
                elif missing and (least is None or member.size <= 2 * least + (64 << 20)):
                    self._pack(data, kind, missing)

    def _pack(self, data: IO[bytes], kind: str, wanted: Container[str]) -> None:
        """Pack one layer of the archive; it is kept when its digest is wanted, which its last byte tells."""
        sample = data.read(SAMPLE_BYTES)
        if len(zlib.compress(sample, 1)) > PAYS_BELOW * len(sample):
            kind = "raw"
        plain, plain_bytes = hashlib.sha256(), 0

        def blocks() -> Iterator[bytes]:
            nonlocal plain_bytes
            block = sample
            while block:
                plain.update(block)
                plain_bytes += len(block)
                yield block
                block = data.read(BLOCK_BYTES)

        made = self._file(f"new-{secrets.token_hex(8)}", kind)
        with publishing(made) as file, _packer(kind, cast(IO[bytes], file)) as packer:
            for block in blocks():
                packer.write(block)
        diff_id = f"sha256:{plain.hexdigest()}"
        if diff_id not in wanted:
            made.unlink()
            return
        told = {"sha256": sha256_file(made), "bytes": made.stat().st_size, "plain_bytes": plain_bytes}
        made.replace(self._file(diff_id, kind))
        publish(self._file(diff_id, kind).with_suffix(f".{kind}.json"), to_json(told))

    def _file(self, digest: str, kind: str) -> Path:
        return self.folder / f"{digest.removeprefix('sha256:')}.{kind}"


@contextmanager
def _packer(kind: str, file: IO[bytes]) -> Iterator[IO[bytes]]:
    """Something to write a layer to, whose packed form goes to the file."""
    if kind == "raw":
        yield file
    elif kind == "gz":
        import gzip

        with gzip.GzipFile(filename="", fileobj=file, mode="wb", compresslevel=1, mtime=0) as packer:
            yield cast(IO[bytes], packer)
    else:
        with subprocess.Popen(ship.compress(), stdin=subprocess.PIPE, stdout=file) as process:
            with cast(IO[bytes], process.stdin) as pipe:
                yield pipe
            if process.wait():
                raise OSError(f"zstd ended with code {process.returncode}")


def archive(config: bytes, reference: str, layers: Sequence[Packed | None], spool: Spool) -> list[Packed]:
    """The pieces of an archive for ``docker load``; a layer that is None is one that the engine has."""
    told = json.loads(config)
    diff_ids = told["rootfs"]["diff_ids"]
    names = [f"{diff_id.removeprefix('sha256:')}.tar" for diff_id in diff_ids]
    config_name = f"{hashlib.sha256(config).hexdigest()}.json"
    manifest = json.dumps([{"Config": config_name, "RepoTags": [reference], "Layers": names}]).encode()
    pieces, between = [], b""
    for name, layer in zip(names, layers, strict=True):
        if layer is not None:
            pieces += [spool.note(between + _header(name, layer.plain_bytes)), layer]
            between = bytes(-layer.plain_bytes % tarfile.BLOCKSIZE)
    for name, data in ((config_name, config), ("manifest.json", manifest)):
        between += _header(name, len(data)) + data + bytes(-len(data) % tarfile.BLOCKSIZE)
    return [*pieces, spool.note(between + bytes(2 * tarfile.BLOCKSIZE))]


def _header(name: str, length_bytes: int) -> bytes:
    header = tarfile.TarInfo(name)
    header.size = length_bytes
    return header.tobuf(tarfile.GNU_FORMAT)  # a length beyond 8 GB has no place in the oldest format
