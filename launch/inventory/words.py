"""Words about what stands in launch.toml."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from pathlib import Path
from typing import Any


def nearest(name: str, known: Mapping[str, Any] | tuple[str, ...]) -> str:
    """A question after the name that was perhaps meant; empty when none is near."""
    close = difflib.get_close_matches(name, list(known), n=1)
    return f"; did you mean {close[0]!r}?" if close else ""


def expanded(path: str) -> Path:
    """A path with ``~`` taken for what it means here."""
    try:
        return Path(path).expanduser()
    except RuntimeError:  # ~nobody: no such user
        return Path(path)


def kind_of(value: object) -> str:
    """What a value of TOML is, in words."""
    names = {bool: "true or false", str: "text", int: "a number", float: "a number", list: "a list", dict: "a table"}
    return names.get(type(value), type(value).__name__)
