"""Layers of this machine's images, packed for the way and kept by name, so that nothing is packed twice.

An engine gives away whole images only: the archive is read as it comes, and what is not wanted is passed over.
"""

from __future__ import annotations

import contextlib
import gzip
import hashlib
import io
import json
import tarfile
import zlib
from collections.abc import Container, Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, cast

from launch.argv import ship
from launch.environment.packing import CHUNK_BYTES, Chunks, Packed, keeping
from launch.errors import Exit, LaunchError
from launch.transport import Transport
from minimind.durable import publish, to_json

SMALL_BYTES = 4 << 20
BLOCK_BYTES = 1 << 20
GZIP = b"\x1f\x8b"


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

    def __init__(self, folder: Path, beside: Path | None = None, *, chunk_bytes: int = CHUNK_BYTES) -> None:
        self.folder, self._beside, self._chunk_bytes = folder, beside, chunk_bytes
        self._chunks = Chunks(folder)

    def layer(self, diff_id: str, kind: str) -> tuple[Packed, ...] | None:
        """The chunks of a layer packed earlier, in order, for a host that can unpack ``kind``."""
        try:
            names = json.loads(self._file(diff_id, "layer").read_bytes())["chunks"]
            found = [self._chunks.find(name, kind) for name in names]
        except (OSError, ValueError, KeyError, TypeError):
            return None
        return None if None in found else tuple(cast(list[Packed], found))

    def config(self, image_id: str) -> bytes | None:
        """The configuration of an image packed earlier; some engines name images by what names the configuration."""
        with contextlib.suppress(OSError):
            image_id = self._file(image_id, "named").read_text()
        with contextlib.suppress(OSError):
            data = self._file(image_id, "config").read_bytes()
            return data if f"sha256:{hashlib.sha256(data).hexdigest()}" == image_id else None
        return None

    def note(self, data: bytes) -> Packed:
        """A small file of the archive."""
        digest = hashlib.sha256(data).hexdigest()
        path = self.folder / f"{digest}.raw"
        with keeping(path) as file:
            file.write(data)
        return Packed(kind="raw", path=path, sha256=digest, bytes=len(data), plain_bytes=len(data))

    def pack(
        self, laptop: Transport, image_id: str, wanted: Mapping[str, int | None], *, kind: str, whole: bool
    ) -> Iterator[Packed]:
        """Pack what is missing of these layers, and the image's configuration; gives each chunk once it can be sent.

        Args:
            laptop: this machine.
            image_id: the image that has them.
            wanted: diff id -> bytes of its files where that is known, which spares packing what cannot be it.
            kind: how to pack.
            whole: whether these are all the layers of the image, so that any layer that comes is wanted.

        Raises:
            LaunchError: HOST_NOT_READY when the engine here does not give them, or this disk is full.
        """
        try:
            self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            yield from self._gather(laptop, image_id, wanted, kind, whole=whole)
        except (OSError, EOFError, tarfile.TarError, zlib.error) as error:
            raise LaunchError(
                "the image could not be packed on this machine",
                why=str(error) or "the engine's archive ended early",
                remedy=f"make room for it in {self.folder}, see whether `docker save` works here, and run this again",
                code=Exit.HOST_NOT_READY,
            ) from error
        lacking = [diff_id for diff_id in wanted if self.layer(diff_id, kind) is None]
        if lacking or self.config(image_id) is None:
            raise LaunchError(
                f"the engine here does not give away {lacking[0] if lacking else 'the configuration of ' + image_id}",
                why="its archive does not hold these bytes; other image stores write layers anew",
                remedy="make the image with an engine that keeps layers as they are (overlay2), then run this again",
                code=Exit.HOST_NOT_READY,
            )

    def _gather(
        self, laptop: Transport, image_id: str, wanted: Mapping[str, int | None], kind: str, *, whole: bool
    ) -> Iterator[Packed]:
        missing: dict[str, int | None] = {}
        for diff_id, length_bytes in wanted.items():
            chunks = self.layer(diff_id, kind)
            if chunks is None and (path := self._part(diff_id, "tar")) is not None:
                with open(path, "rb") as data:
                    yield from self._pack(data, kind, {diff_id}, certain=True)
            elif chunks is not None:
                yield from chunks
            if self.layer(diff_id, kind) is None:
                missing[diff_id] = length_bytes
        if self.config(image_id) is None and (path := self._part(image_id, "config")) is not None:
            publish(self._file(image_id, "config"), path.read_bytes())
        if missing or self.config(image_id) is None:
            yield from self._read(laptop, image_id, missing, kind, certain=whole)

    def _read(
        self, laptop: Transport, image_id: str, missing: Mapping[str, int | None], kind: str, *, certain: bool
    ) -> Iterator[Packed]:
        least = None if None in missing.values() else sum(size or 0 for size in missing.values())
        stream = io.BufferedReader(_Reader(laptop.stream(ship.save(image_id))), BLOCK_BYTES)
        texts: dict[str, bytes] = {}
        with tarfile.open(fileobj=stream, mode="r|") as tar:
            for member in tar:
                data = tar.extractfile(member) if member.isreg() else None
                if data is None:
                    continue
                if member.size <= SMALL_BYTES:
                    small = data.read()
                    if small.startswith(b"{"):
                        texts[f"sha256:{hashlib.sha256(small).hexdigest()}"] = small
                    plain = gzip.decompress(small) if small.startswith(GZIP) else small
                    if f"sha256:{hashlib.sha256(plain).hexdigest()}" in missing:
                        yield from self._pack(io.BytesIO(plain), kind, missing, certain=True)
                elif missing and (certain or least is None or member.size <= 2 * least + (64 << 20)):
                    packed = (
                        cast(io.BufferedReader, data).peek(2).startswith(GZIP)
                    )  # other stores keep layers as a registry gave them
                    plain_data = cast(IO[bytes], gzip.GzipFile(fileobj=data)) if packed else data
                    yield from self._pack(plain_data, kind, missing, certain=certain)
        if (name := _config_name(image_id, texts)) is not None:
            publish(self._file(name, "config"), texts[name])
            if name != image_id:
                publish(self._file(image_id, "named"), name.encode())

    def _pack(self, data: IO[bytes], kind: str, wanted: Container[str], *, certain: bool) -> Iterator[Packed]:
        """Pack one layer; it is kept when its digest is wanted, which its last byte tells unless that is certain."""
        digest, chunks = hashlib.sha256(), list[Packed]()
        while plain := data.read(self._chunk_bytes):
            digest.update(plain)
            chunks.append(self._chunks.pack(plain, kind))
            if certain:
                yield chunks[-1]
        diff_id = f"sha256:{digest.hexdigest()}"
        if diff_id in wanted:
            names = [chunk.path.name.partition(".")[0] for chunk in chunks]
            publish(self._file(diff_id, "layer"), to_json({"chunks": names}))
            yield from () if certain else chunks
        elif not certain and not self._file(diff_id, "layer").is_file():
            for chunk in chunks:
                self._chunks.forget(chunk)

    def _part(self, digest: str, kind: str) -> Path | None:
        """A part of the image that lies beside the code."""
        path = self._beside / f"{digest.removeprefix('sha256:')}.{kind}" if self._beside else None
        return path if path and path.is_file() else None

    def _file(self, digest: str, kind: str) -> Path:
        return self.folder / f"{digest.removeprefix('sha256:')}.{kind}"


def _config_name(name: str, texts: Mapping[str, bytes]) -> str | None:
    """The digest of an image's configuration, followed from what names the image: a manifest or a list of them."""
    for _ in range(3):
        told = json.loads(texts.get(name, b"{}"))
        if "rootfs" in told:
            return name
        below = [told["config"]] if "config" in told else told.get("manifests", [])
        name = next((item["digest"] for item in below if item["digest"] in texts), "")
    return None


def archive(config: bytes, reference: str, layers: Sequence[Sequence[Packed] | None], spool: Spool) -> list[Packed]:
    """The pieces of an archive for ``docker load``; a layer that is None is one that the engine has."""
    told = json.loads(config)
    diff_ids = told["rootfs"]["diff_ids"]
    names = [f"{diff_id.removeprefix('sha256:')}.tar" for diff_id in diff_ids]
    config_name = f"{hashlib.sha256(config).hexdigest()}.json"
    manifest = json.dumps([{"Config": config_name, "RepoTags": [reference], "Layers": names}]).encode()
    pieces: list[Packed] = []
    between = b""
    for name, layer in zip(names, layers, strict=True):
        if layer is not None:
            plain_bytes = sum(chunk.plain_bytes for chunk in layer)
            pieces += [spool.note(between + _header(name, plain_bytes)), *layer]
            between = bytes(-plain_bytes % tarfile.BLOCKSIZE)
    for name, data in ((config_name, config), ("manifest.json", manifest)):
        between += _header(name, len(data)) + data + bytes(-len(data) % tarfile.BLOCKSIZE)
    return [*pieces, spool.note(between + bytes(2 * tarfile.BLOCKSIZE))]


def _header(name: str, length_bytes: int) -> bytes:
    header = tarfile.TarInfo(name)
    header.size = length_bytes
    return header.tobuf(tarfile.GNU_FORMAT)  # a length beyond 8 GB has no place in the oldest format
