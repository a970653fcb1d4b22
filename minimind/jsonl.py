"""JSONL lines and what can be wrong with them: every fault has a line and a why; no line is read beyond a bound."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from minimind.rundir import Reason, RunError
from minimind.tokenizer import ROLES

MAX_LINE_BYTES = 8 << 20
BYTE_ORDER_MARK = b"\xef\xbb\xbf"
"""What some editors put before the first line."""
MORE = ("reasoning_content", "tools", "tool_calls")
"""What a message may hold besides role and content."""
NAMED = 20
"""Faults named one by one; beyond that they are only counted."""
COUNTED = 10_000
"""Bad lines after which a file is given up: it is of another kind, and reading on would only cost time."""


class BadLine(Exception):
    """Why one line cannot be used."""


@dataclass(frozen=True, kw_only=True)
class Fault:
    """One bad line."""

    line: int
    why: str


@dataclass(kw_only=True)
class Faults:
    """What was wrong in a file: counts, and the first of each kind by name, so that memory does not grow with lines."""

    bad: int = 0
    blank: int = 0
    shortened: int = 0  # texts longer than any model reads; no fault of the file
    named: list[Fault] = field(default_factory=list)

    def note(self, line: int, why: str) -> None:
        """Count one bad line."""
        self.bad += 1
        if len(self.named) < NAMED:
            self.named.append(Fault(line=line, why=why))

    def add(self, other: Faults) -> None:
        """Count what was found in a later part of the file too."""
        self.bad += other.bad
        self.blank += other.blank
        self.shortened += other.shortened
        self.named += other.named[: NAMED - len(self.named)]

    def told(self, name: str) -> str:
        """What was passed over, in one line."""
        named = "; ".join(f"{name}:{fault.line}: {fault.why}" for fault in self.named[:3])
        more = f"; and {self.bad - 3:,} more" if self.bad > 3 else ""
        return f"passed over {self.bad:,} bad and {self.blank:,} blank lines of {name}" + (
            f": {named}{more}" if named else ""
        )

    def refuse(self, path: Path, *, skip_bad_lines: int) -> None:
        """Refuse the file when more of its lines are bad than are tolerated.

        Raises:
            RunError: DATA_INVALID, with the count and `file:line: why` of the first ones.
        """
        if self.bad <= skip_bad_lines:
            return
        named = "; ".join(f"{path.name}:{fault.line}: {fault.why}" for fault in self.named)
        more = f"; and {self.bad - len(self.named):,} more" if self.bad > len(self.named) else ""
        at_least = "at least " if self.bad >= COUNTED else ""
        raise RunError(
            f"{path} has bad lines ({at_least}{self.bad})",
            why=named + more,
            remedy=f"repair {'it' if self.bad == 1 else 'them'}, or tolerate with --skip_bad_lines {self.bad}"
            if not at_least
            else "check that the file is of the kind that this stage reads",
            reason=Reason.DATA_INVALID,
        )


def _shown(value: object) -> str:
    """A value of the file as it may stand in a message: short, and without control characters."""
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        names = [name for name, _ in pairs]
        seen: set[str] = set()
        twice = next(name for name in names if name in seen or seen.add(name))
        raise BadLine(f"the key {_shown(twice)} stands twice in one object")
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
        value = json.loads(raw.decode("utf-8").rstrip("\r\n"), object_pairs_hook=_unique)
    except UnicodeDecodeError as error:
        raise BadLine(f"it is not UTF-8 (byte {error.start + 1})") from error
    except json.JSONDecodeError as error:
        raise BadLine(f"broken JSON at column {error.colno}: {error.msg}") from error
    except RecursionError as error:
        raise BadLine("it is nested too deeply") from error
    except ValueError as error:  # Python refuses to convert a number of thousands of digits
        raise BadLine("it holds a number that is too long") from error
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
            raise BadLine(
                f'turn {number} of "{key}" has the unknown role {_shown(turn["role"])} (known: {", ".join(ROLES)})'
            )
        clean: dict[str, Any] = {
            "role": turn["role"],
            "content": text_of(turn["content"], f'"content" of turn {number}'),
        }
        if turn.get("reasoning_content") is not None:  # an empty one tells the template not to look for thoughts
            clean["reasoning_content"] = text_of(turn["reasoning_content"], f'"reasoning_content" of turn {number}')
        for name in ("tools", "tool_calls"):
            if turn.get(name):
                clean[name] = _json_list(turn[name], f'"{name}" of turn {number}')
        says_nothing = not clean["content"].strip() and not any(clean.get(name) for name in MORE)
        if clean["role"] == "assistant" and says_nothing:
            raise BadLine(f'the answer in turn {number} of "{key}" is empty')
        found.append(clean)
    return found


def _json_list(value: Any, what: str) -> list[Any]:
    try:
        loaded = json.loads(value) if isinstance(value, str) else value
    except (ValueError, RecursionError) as error:
        raise BadLine(f"{what} is broken JSON") from error
    if not isinstance(loaded, list) or not all(isinstance(item, dict) for item in loaded):
        raise BadLine(f"{what} is not a list of objects")
    return loaded


def raw_lines(path: Path) -> Iterator[tuple[int, bytes]]:
    """Line numbers from 1 and bytes; of a line beyond the bound only its beginning, the rest is skipped unread."""
    with open(path, "rb") as file:
        number = 0
        while raw := file.readline(MAX_LINE_BYTES + 1):
            number += 1
            rest, raw = raw, raw.removeprefix(BYTE_ORDER_MARK) if number == 1 and len(raw) <= MAX_LINE_BYTES else raw
            while len(rest) > MAX_LINE_BYTES and not rest.endswith(b"\n"):
                rest = file.readline(MAX_LINE_BYTES + 1)
            yield number, raw


def parse_lines(
    path: Path, parse: Callable[[Mapping[str, Any]], Any], *, skip_bad_lines: int, faults: Faults | None = None
) -> Iterator[tuple[int, Any]]:
    """Parsed lines with their numbers; blank ones and up to ``skip_bad_lines`` bad ones are counted and passed over.

    Raises:
        RunError: DATA_MISSING, or DATA_INVALID naming the bad lines once there are more than tolerated.
    """
    faults = Faults() if faults is None else faults
    with readable(path):
        for number, raw in raw_lines(path):
            if not raw.strip():
                faults.blank += 1
                continue
            try:
                parsed = parse(decode(raw))
            except BadLine as error:
                faults.note(number, str(error))
                if faults.bad >= COUNTED and faults.bad > skip_bad_lines:
                    break
                continue
            if faults.bad <= skip_bad_lines:  # of a file that will be refused the rest is only counted
                yield number, parsed
    faults.refuse(path, skip_bad_lines=skip_bad_lines)


@contextlib.contextmanager
def readable(path: Path) -> Iterator[None]:
    """Reading a data file inside this block.

    Raises:
        RunError: DATA_MISSING when it is not there or may not be read.
    """
    try:
        yield
    except (FileNotFoundError, IsADirectoryError, PermissionError) as error:
        raise RunError(
            f"no data file {path}" if not isinstance(error, PermissionError) else f"{path} may not be read",
            why=str(error),
            remedy="give --data_path FILE, or put the file there",
            reason=Reason.DATA_MISSING,
        ) from error
