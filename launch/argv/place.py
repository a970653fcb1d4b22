"""Commands that tell whether the roots of two hosts are one folder. Pure."""

from __future__ import annotations

from launch.argv.migrate import FOLDER

MARK = r"""
umask 077
[ -d "$1" ] || exit 0
mkdir -p -- "$2" && : >"$2/$3" && echo made
exit 0
"""

SEES = r"""
ls -a -- "$1" "$2" >/dev/null 2>&1
if [ -f "$2/$3" ]; then echo here; fi
"""
"""The listing makes a network file system look again."""

UNMARK = r"""
rm -f -- "$2/$3"
rmdir -- "$2" 2>/dev/null
exit 0
"""

WHERE = r"""
[ -d "$1" ] || exit 0
{ cat /proc/sys/kernel/random/boot_id || sysctl -n kern.bootsessionuuid; } 2>/dev/null
{ stat -L -c %d:%i -- "$1" || stat -L -f %d:%i -- "$1"; } 2>/dev/null
exit 0
"""
"""Prints what runs there since its last start, and which folder of it this is."""


def mark(root: str, name: str) -> list[str]:
    """Make a file of this name below an existing root, and say so."""
    return _words(MARK, root, name)


def sees(root: str, name: str) -> list[str]:
    """Whether it is below this root."""
    return _words(SEES, root, name)


def unmark(root: str, name: str) -> list[str]:
    """Take it away, and the folder if that is empty."""
    return _words(UNMARK, root, name)


def where(root: str) -> list[str]:
    """Which folder of which machine a root is; it only reads."""
    return ["sh", "-c", WHERE, "sh", root]


def _words(script: str, root: str, name: str) -> list[str]:
    return ["sh", "-c", script, "sh", root, f"{root}/{FOLDER}", name]
