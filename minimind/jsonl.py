"""JSONL lines and what can be wrong with them: every fault has a line and a why; no line is read beyond a bound."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from minimind.rundir import Reason, RunError
from minimind.tokenizer import ROLES

MAX_LINE_BYTES = 8 << 20
NAMED = 20
"""Faults named one by one; beyond that they are only counted."""


class BadLine(Exception):
    """Why one line cannot be used."""


@dataclass(frozen=True, kw_only=True)
class Fault:
    """One bad line."""

    line: int
    why: str


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        names = [name for name, _ in pairs]
        raise BadLine(f"the key {next(n for n in names if names.count(n) > 1)!r} stands twice in one object")
    return found


def decode(raw: bytes) -> dict[str, Any]:
    """One line's object.

    Raises:
        BadLine: when the bytes are not one JSON object of clean text.
    """
    if len(raw) > MAX_LINE_BYTES:
        raise BadLine(f"the line is longer than {MAX_LINE_BYTES >> 20} MiB")
    if b"\0" in raw:
        raise BadLine("it contains a NUL byte")
    try:
        value = json.loads(raw.decode("utf-8"), object_pairs_hook=_unique)
    except UnicodeDecodeError as error:
        raise BadLine(f"it is not UTF-8 (byte {error.start + 1})") from error
    except json.JSONDecodeError as error:
        raise BadLine(f"broken JSON at column {error.colno}: {error.msg}") from error
    except RecursionError as error:
        raise BadLine("it is nested too deeply") from error
    if not isinstance(value, dict):
        raise BadLine(f"it is a {type(value).__name__}, not an object")
    return value


def text_of(value: Any, what: str) -> str:
    """A non-empty string that can be encoded."""
    if not isinstance(value, str):
        raise BadLine(f"{what} is a {type(value).__name__}, not a string")
    if "\0" in value:
        raise BadLine(f"{what} contains a NUL character")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise BadLine(f"{what} contains half of a surrogate pair") from error
    return value


def pretrain_text(line: Mapping[str, Any]) -> str:
    """``{"text": …}``."""
    if "text" not in line:
        raise BadLine('the key "text" is missing')
    text = text_of(line["text"], '"text"')
    if not text.strip():
        raise BadLine('"text" is empty')
    return text


def messages(line: Mapping[str, Any], key: str) -> list[dict[str, Any]]:
    """A list of ``{"role", "content"}``; minimind3's lines may add ``reasoning_content``, ``tools`` and ``tool_calls``.

    The last two are JSON, as text or as it is; the chat template renders them.
    """
    if key not in line:
        raise BadLine(f'the key "{key}" is missing')
    turns = line[key]
    if not isinstance(turns, list):
        raise BadLine(f'"{key}" is a {type(turns).__name__}, not a list')
    if not turns:
        raise BadLine(f'"{key}" is an empty list')
    found = []
    for number, turn in enumerate(turns, 1):
        if not isinstance(turn, dict):
            raise BadLine(f'turn {number} of "{key}" is a {type(turn).__name__}, not an object')
        for name in ("role", "content"):
            if name not in turn:
                raise BadLine(f'turn {number} of "{key}" lacks "{name}"')
        if turn["role"] not in ROLES:
            raise BadLine(f'turn {number} of "{key}" has the unknown role {turn["role"]!r} (known: {", ".join(ROLES)})')
        clean: dict[str, Any] = {
            "role": turn["role"],
            "content": text_of(turn["content"], f'"content" of turn {number}'),
        }
        if turn.get("reasoning_content"):
            clean["reasoning_content"] = text_of(turn["reasoning_content"], f'"reasoning_content" of turn {number}')
        for name in ("tools", "tool_calls"):
            if turn.get(name):
                clean[name] = _json_list(turn[name], f'"{name}" of turn {number}')
        found.append(clean)
    return found


def _json_list(value: Any, what: str) -> list[Any]:
    try:
        loaded = json.loads(value) if isinstance(value, str) else value
    except (ValueError, RecursionError) as error:
        raise BadLine(f"{what} is broken JSON") from error
    if not isinstance(loaded, list):
        raise BadLine(f"{what} is a {type(loaded).__name__}, not a list")
    return loaded


def raw_lines(path: Path) -> Iterator[tuple[int, bytes]]:
    """Line numbers from 1 and bytes; of a line beyond the bound only its beginning, the rest is skipped unread."""
    with open(path, "rb") as file:
        number = 0
        while raw := file.readline(MAX_LINE_BYTES + 1):
            number += 1
            rest = raw
            while len(rest) > MAX_LINE_BYTES and not rest.endswith(b"\n"):
                rest = file.readline(MAX_LINE_BYTES + 1)
            yield number, raw


def parse_lines(
    path: Path, parse: Callable[[Mapping[str, Any]], Any], *, skip_bad_lines: int, faults: list[Fault]
) -> Iterator[tuple[int, Any]]:
    """Parsed lines with their numbers; blank ones and up to ``skip_bad_lines`` bad ones are recorded and passed over.

    Raises:
        RunError: DATA_MISSING, or DATA_INVALID naming the bad lines once there are more than tolerated.
    """
    bad = 0
    try:
        for number, raw in raw_lines(path):
            if not raw.strip():
                faults.append(Fault(line=number, why="blank"))
                continue
            try:
                yield number, parse(decode(raw))
            except BadLine as error:
                bad += 1
                faults.append(Fault(line=number, why=str(error)))
                if bad > skip_bad_lines and bad >= NAMED:
                    break
    except (FileNotFoundError, IsADirectoryError) as error:
        raise RunError(
            f"no data file {path}",
            why=str(error),
            remedy="give --data_path FILE, or put the file there",
            reason=Reason.DATA_MISSING,
        ) from error
    if bad > skip_bad_lines:
        named = [f"{path.name}:{fault.line}: {fault.why}" for fault in faults if fault.why != "blank"][:NAMED]
        raise RunError(
            f"{path} has bad lines ({'at least ' if bad >= NAMED else ''}{bad})",
            why="; ".join(named),
            remedy=f"repair {'it' if bad == 1 else 'them'}, or tolerate with --skip_bad_lines {bad}",
            reason=Reason.DATA_INVALID,
        )
