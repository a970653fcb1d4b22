"""Reading a host's tar archive as it streams in; nothing in it becomes a name here."""

from __future__ import annotations

import contextlib
import io
import tarfile
from collections.abc import Iterable, Iterator
from typing import IO, Any, cast

CHUNK_BYTES = 1 << 16


def members(stream: Iterable[bytes], most_bytes: int) -> Iterator[tuple[str, Iterator[bytes]]]:
    """Name and bytes of each regular file, to be read before the next one. It ends where the archive makes no sense.

    No more than ``most_bytes`` are taken in. What the source of the stream raises comes through.
    """
    source = cast(IO[bytes], _Source(stream, most_bytes))
    with (
        contextlib.suppress(tarfile.TarError, EOFError, ValueError),
        tarfile.open(fileobj=source, mode="r|", errors="surrogateescape") as archive,
    ):
        for member in archive:
            if member.isreg() and not member.sparse and (file := archive.extractfile(member)) is not None:
                yield member.name, _chunks(file)


def _chunks(file: IO[bytes]) -> Iterator[bytes]:
    with contextlib.suppress(tarfile.TarError):  # cut off: the next look into the archive ends it
        while data := file.read(CHUNK_BYTES):
            yield data


class _Source(io.RawIOBase):
    """What streams in, as a file; it gives what is there and waits for no more."""

    def __init__(self, stream: Iterable[bytes], most_bytes: int) -> None:
        super().__init__()
        self._chunks, self._left_bytes = iter(stream), most_bytes
        self._held = b""

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        self._held = (self._held or next(self._chunks, b""))[: self._left_bytes]
        data, self._held = self._held[: len(buffer)], self._held[len(buffer) :]
        buffer[: len(data)] = data
        self._left_bytes -= len(data)
        return len(data)
