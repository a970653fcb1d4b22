"""What can go wrong on account of a user, a host or a network: said in one paragraph, with a documented exit code."""

from __future__ import annotations

import enum
import unicodedata


class Exit(enum.IntEnum):
    """Exit codes of `launch`; scripts rely on them."""

    OK = 0
    BUG = 1
    USAGE = 2
    INVALID = 3
    UNREACHABLE = 4
    HOST_NOT_READY = 5
    RUN_FAILED = 6
    RUN_LOST = 7
    NOT_VERIFIED = 8
    REFUSED = 9
    INCOMPLETE = 10
    INTERRUPTED = 130


class LaunchError(Exception):
    """What happened, why, and what to type next. Text from a host is made printable here, so no caller can forget."""

    def __init__(self, what: str, *, why: str, remedy: str, code: Exit) -> None:
        super().__init__(what)
        self.what, self.why, self.remedy, self.code = printable(what), printable(why), printable(remedy), code

    def __str__(self) -> str:
        return f"{self.what}\n  why: {self.why}\n  remedy: {self.remedy}"


def printable(text: str) -> str:
    r"""The text with every control, format and surrogate character but newline and tab spelled out, as in ``\x1b``.

    Hosts are not trusted: their file names and messages must not move the cursor or reverse the reading order.
    """
    return "".join(c if c in "\n\t" or unicodedata.category(c) not in _UNSAFE else _spelled(c) for c in text)


_UNSAFE = {"Cc", "Cf", "Cs", "Zl", "Zp"}


def _spelled(character: str) -> str:
    code = ord(character)
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"
