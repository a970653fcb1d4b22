"""What a pickle would call when it is read, found without reading it: a weights file of tensors needs very little.

torch's own reader for weights allows a few functions that make large values of small ones, nested at will; a file of
two kilobytes can so ask for any amount of memory. Standard library only.
"""

from __future__ import annotations

import pickletools
import re
import zipfile
from pathlib import Path
from typing import IO

NEEDED = re.compile(
    r"collections OrderedDict|torch\._utils _rebuild_(tensor_v2|parameter)|torch(\.storage)? \w*Storage|"
    r"torch (Size|b?float\d+|int\d+)"
)
LIMIT_BYTES = 64 << 20
LEGACY_PICKLES = 5
"""Magic number, version, machine, the state, the names of storages; then come the storages' bytes."""


def trouble(path: Path) -> str | None:
    """Why the pickles of a file written by torch.save are not those of a plain state dict; None when they are."""
    try:
        if not zipfile.is_zipfile(path):
            with open(path, "rb") as file:
                return next(filter(None, (_of(file) for _ in range(LEGACY_PICKLES))), None)
        with zipfile.ZipFile(path) as archive:
            entries = [entry for entry in archive.infolist() if entry.filename.endswith(".pkl")]
            if sum(entry.file_size for entry in entries) > LIMIT_BYTES:
                return "the list of its tensors is larger than any model's"
            for entry in entries:
                with archive.open(entry) as file:
                    if found := _of(file):
                        return found
    except (ValueError, EOFError, OSError, IndexError, OverflowError, MemoryError, zipfile.BadZipFile):
        return "it is damaged or no such file; nothing in it was run"
    return None


def _of(file: IO[bytes]) -> str | None:
    for operation, argument, _ in pickletools.genops(file):
        if operation.name in ("INST", "STACK_GLOBAL", "EXT1", "EXT2", "EXT4", "NEXT_BUFFER"):
            return f"it uses {operation.name}, which torch.save does not; nothing in it was run"
        if operation.name == "GLOBAL" and not NEEDED.fullmatch(str(argument)):
            name = ".".join(str(argument).split(" ", 1))[:80]
            return f"it holds more than tensors ({name!r}), which may run code when read; nothing in it was run"
    return None
