"""Reading weights as data, on a machine without torch: whether they load, shapes fit and all numbers are finite.

The formats are those of ``torch.save`` (a zip of raw storages and one pickle) and of safetensors. Nothing in a file is
ever called: the pickle machine knows the names below and refuses every other.
"""

from __future__ import annotations

import io
import json
import math
import pickle
import struct
import zipfile
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

MAX_HEADER_BYTES = 64 << 20
CHUNK_BYTES = 4 << 20
WIDTHS = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "I64": 8, "I32": 4, "I16": 2, "I8": 1, "U8": 1, "BOOL": 1}
"""Bytes of one number; the names are those of safetensors."""
STORAGES = {
    "DoubleStorage": "F64",
    "FloatStorage": "F32",
    "HalfStorage": "F16",
    "BFloat16Storage": "BF16",
    "LongStorage": "I64",
    "IntStorage": "I32",
    "ShortStorage": "I16",
    "CharStorage": "I8",
    "ByteStorage": "U8",
    "BoolStorage": "BOOL",
}
EXPONENT = {"F64": (0x7F, 0xF0), "F32": (0x7F, 0x80), "BF16": (0x7F, 0x80), "F16": (0x7C, 0x00)}
"""Per kind: the bits of the highest and the next byte that are all set in an infinity or NaN, and only there."""


class Unusable(Exception):
    """Why the file is no set of weights that can be used."""


@dataclass(frozen=True)
class _Storage:
    kind: str
    key: str
    count: int


@dataclass(frozen=True)
class _Tensor:
    storage: _Storage
    offset: int
    size: tuple[int, ...]
    stride: tuple[int, ...]


def examine(path: Path) -> int:
    """Read a weights file to its end; returns how many tensors it holds.

    Raises:
        Unusable: in words, when it could not be loaded, a shape does not fit or a number is not finite.
    """
    try:
        return _safetensors(path) if path.suffix == ".safetensors" else _torch(path)
    except (OSError, zipfile.BadZipFile, EOFError, ValueError, struct.error) as error:
        raise Unusable(f"it cannot be read: {error}") from error


def _torch(path: Path) -> int:
    tensors: list[_Tensor] = []
    with zipfile.ZipFile(path) as archive:
        entries = {info.filename.partition("/")[2]: info for info in archive.infolist()}
        for info in entries.values():
            if info.compress_type != zipfile.ZIP_STORED or info.file_size > path.stat().st_size:
                raise Unusable("it is compressed, or claims more bytes than it has")
        if "data.pkl" not in entries or entries["data.pkl"].file_size > MAX_HEADER_BYTES:
            raise Unusable("it has no data.pkl of a sensible length: torch.save did not write it")
        if "byteorder" in entries and archive.read(entries["byteorder"]) != b"little":
            raise Unusable("its numbers are in another byte order")
        try:
            _Reader(archive.read(entries["data.pkl"]), tensors).load()
        except (pickle.UnpicklingError, TypeError, KeyError, IndexError, AttributeError, RecursionError) as error:
            raise Unusable(f"its table of contents cannot be read: {error}") from error
        for tensor in tensors:
            _fits(tensor)
        for storage in {tensor.storage for tensor in tensors}:
            entry = entries.get(f"data/{storage.key}")
            if entry is None or entry.file_size != storage.count * WIDTHS[storage.kind]:
                raise Unusable(f"storage {storage.key} is missing or has another length than its shape says")
            with archive.open(entry) as data:
                _finite(data, entry.file_size, storage.kind)
    if not tensors:
        raise Unusable("it holds no tensor")
    return len(tensors)


class _Reader(pickle.Unpickler):
    def __init__(self, data: bytes, found: list[_Tensor]) -> None:
        super().__init__(io.BytesIO(data))
        self._found = found

    def find_class(self, module: str, name: str) -> Any:
        match module, name:
            case "collections", "OrderedDict":
                return OrderedDict
            case "torch._utils", "_rebuild_tensor_v2":
                return self._tensor
            case "torch._utils", "_rebuild_parameter":
                return _first
            case "torch", "Size":
                return tuple
            case "torch", "device":
                return _first
            case "torch", _ if name in STORAGES:
                return STORAGES[name]
        raise pickle.UnpicklingError(f"it wants {module}.{name}, which no weights need")

    def persistent_load(self, pid: Any) -> _Storage:
        tag, kind, key, _, count = pid
        if tag != "storage" or kind not in WIDTHS or not isinstance(count, int) or count < 0:
            raise pickle.UnpicklingError("a storage that makes no sense")
        return _Storage(kind, str(key), count)

    def _tensor(self, storage: _Storage, offset: int, size: Any, stride: Any, *_: Any) -> _Tensor:
        tensor = _Tensor(storage, offset, tuple(size), tuple(stride))
        self._found.append(tensor)
        return tensor


def _first(value: Any, *_: Any) -> Any:
    return value


def _fits(tensor: _Tensor) -> None:
    numbers = (tensor.offset, *tensor.size, *tensor.stride)
    if len(tensor.size) != len(tensor.stride) or not all(isinstance(n, int) and n >= 0 for n in numbers):
        raise Unusable(f"a tensor has the shape {tensor.size} and the strides {tensor.stride}")
    last = sum((n - 1) * step for n, step in zip(tensor.size, tensor.stride, strict=True))
    if math.prod(tensor.size) and tensor.offset + last >= tensor.storage.count:
        raise Unusable(f"a tensor of shape {tensor.size} does not fit into its {tensor.storage.count} numbers")


def _safetensors(path: Path) -> int:
    with open(path, "rb") as file:
        (header_bytes,) = struct.unpack("<Q", file.read(8))
        if header_bytes > min(MAX_HEADER_BYTES, path.stat().st_size):
            raise Unusable("its header is longer than the file")
        header = json.loads(file.read(header_bytes))
        tensors = {name: entry for name, entry in header.items() if name != "__metadata__"}
        start, end = 8 + header_bytes, path.stat().st_size
        for name, entry in tensors.items():
            try:
                kind, shape, (first, last) = entry["dtype"], entry["shape"], entry["data_offsets"]
                fits = last - first == math.prod(shape) * WIDTHS[kind] and first >= 0 and start + last <= end
            except (KeyError, TypeError) as error:
                raise Unusable(f"the entry of {name} cannot be understood") from error
            if not fits:
                raise Unusable(f"{name} of shape {shape} does not fit into its bytes")
            file.seek(start + first)
            _finite(file, last - first, kind)
    if not tensors:
        raise Unusable("it holds no tensor")
    return len(tensors)


def _finite(file: IO[bytes], length_bytes: int, kind: str) -> None:
    """Look at every number of a storage; a zip entry's checksum is verified on the way."""
    width = WIDTHS[kind]
    for chunk in _chunks(file, length_bytes):
        if kind not in EXPONENT:
            continue
        high_bits, low_bits = EXPONENT[kind]
        high = chunk[width - 1 :: width]
        harmless = bytes(b for b in range(256) if b & high_bits != high_bits)
        if not high.translate(None, harmless):
            continue  # nothing is even close: no loop over the numbers
        low = chunk[width - 2 :: width]
        if any(a & high_bits == high_bits and b & low_bits == low_bits for a, b in zip(high, low, strict=True)):
            raise Unusable("it has numbers that are NaN or infinite")


def _chunks(file: IO[bytes], length_bytes: int) -> Iterator[bytes]:
    while length_bytes:
        chunk = file.read(min(CHUNK_BYTES, length_bytes))
        if not chunk:
            raise Unusable("it ends in the middle of a tensor")
        while len(chunk) < min(CHUNK_BYTES, length_bytes) and (more := file.read(CHUNK_BYTES - len(chunk))):
            chunk += more
        length_bytes -= len(chunk)
        yield chunk
