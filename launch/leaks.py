"""Whether the values of secrets lie in files: tells names of secrets and files, never a value. Standard library only.

A host runs the text of this very file (``python -c``), with what to look for and where as JSON on stdin.
"""

from __future__ import annotations

import glob
import json
import os
import stat
import sys
from collections.abc import Iterator
from typing import Any
from urllib.parse import quote

LARGEST_BYTES = 64 << 20
HISTORIES = (
    *("~/.bash_history", "~/.zsh_history", "~/.histfile", "~/.ash_history", "~/.sh_history", "~/.python_history"),
    *("~/.local/share/fish/fish_history", "~/.config/fish/fish_history"),
)


def scan(values: dict[str, str], paths: list[str]) -> dict[str, Any]:
    """``{"files": looked into, "skipped": too large or unreadable, "hits": [{"secret", "path"}]}``.

    A path may be a file, a folder (everything below it) or a pattern; ``~/`` is the home folder. No link is followed.
    """
    wanted = {
        name: {form.encode("utf-8", "surrogateescape") for form in (value, json.dumps(value)[1:-1], quote(value))}
        for name, value in values.items()
        if value
    }
    said: dict[str, Any] = {"files": 0, "skipped": 0, "hits": []}
    for path in dict.fromkeys(found for asked in paths for found in _files(os.path.expanduser(asked))):  # noqa: PTH111
        try:
            status = os.lstat(path)
            if not stat.S_ISREG(status.st_mode):
                continue
            if status.st_size > LARGEST_BYTES:
                said["skipped"] += 1
                continue
            with open(path, "rb") as file:
                data = file.read()
        except OSError:
            said["skipped"] += 1
            continue
        said["files"] += 1
        for name, forms in wanted.items():
            if any(form in data for form in forms):
                said["hits"].append({"secret": name, "path": path.encode("utf-8", "replace").decode()})
    return said


def _files(asked: str) -> Iterator[str]:
    for path in [asked] if os.path.lexists(asked) else glob.glob(asked):  # noqa: PTH207
        if os.path.isdir(path) and not os.path.islink(path):  # noqa: PTH112, PTH114
            for folder, _, names in os.walk(path):
                yield from (os.path.join(folder, name) for name in names)
        else:
            yield path


if __name__ == "__main__":
    asked = json.load(sys.stdin)
    json.dump(scan(asked["values"], asked["paths"]), sys.stdout)
