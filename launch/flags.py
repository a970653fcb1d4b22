"""The trainer's flags as the launcher sees them: a list of words to look into and to rewrite, never to interpret.

``--hidden_size 64``, ``--hidden-size 64`` and ``--hidden_size=64`` are one flag; the last one given wins.
"""

from __future__ import annotations

from collections.abc import Sequence

OFF = ("0", "false", "no", "off", "none")


def _name(word: str) -> str | None:
    return word[2:].partition("=")[0].replace("-", "_") if word.startswith("--") and len(word) > 2 else None


def _positions(flags: Sequence[str], name: str) -> list[int]:
    return [index for index, word in enumerate(flags) if _name(word) == name]


def _takes_next(flags: Sequence[str], index: int) -> bool:
    return "=" not in flags[index] and index + 1 < len(flags) and not flags[index + 1].startswith("--")


def value_of(flags: Sequence[str], name: str) -> str | None:
    """The flag's value; "" when it stands alone, None when it is absent."""
    found = _positions(flags, name)
    if not found:
        return None
    if "=" in flags[found[-1]]:
        return flags[found[-1]].partition("=")[2]
    return flags[found[-1] + 1] if _takes_next(flags, found[-1]) else ""


def is_on(flags: Sequence[str], name: str) -> bool:
    """Whether a switch is set, as ``--use_moe`` or ``--use_moe 1``; ``--no_use_moe`` after it wins."""
    switches = [*_positions(flags, name), *_positions(flags, f"no_{name}")]
    if not switches or _name(flags[max(switches)]) != name:
        return False
    return (value_of(flags, name) or "1").lower() not in OFF


def without(flags: Sequence[str], name: str) -> list[str]:
    """The flags with every mention of one removed, and its value with it."""
    dropped: set[int] = set()
    for index in _positions(flags, name):
        dropped |= {index, index + 1} if _takes_next(flags, index) else {index}
    return [word for index, word in enumerate(flags) if index not in dropped]


def with_value(flags: Sequence[str], name: str, value: str) -> list[str]:
    """The flags with one set to a value, in its first place if it has one, else in front."""
    found = _positions(flags, name)
    place = len(without(flags[: found[0]], name)) if found else 0
    rest = without(flags, name)
    return [*rest[:place], f"--{name}", value, *rest[place:]]
