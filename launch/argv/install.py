"""Commands that bring code and environments to a host."""

from __future__ import annotations

UNPACK = r"""
set -e
umask 077
final=$1
[ ! -d "$final" ] || exit 0
mkdir -p "${final%/*}"
made=$(mktemp -d "${final%/*}/.tmp-XXXXXX")
tar -xf - -C "$made"
mv "$made" "$final"
rm -rf "${final:?}/${made##*/}"
"""
"""Unpacks stdin beside the final name, then renames. Whoever comes second finds his copy inside, and drops it."""

LOGGED = r"""
umask 077
log=$1
shift
"$@" 2>"$log" </dev/null
code=$?
[ "$code" -eq 0 ] || tail -n 6 "$log" >&2
exit "$code"
"""

TAIL = 'tail -c "+$2" "$1" 2>/dev/null; true'


def unpack(folder: str) -> list[str]:
    """Make a folder from the tar on stdin, all at once."""
    return ["sh", "-c", UNPACK, "sh", folder]


def venv(
    *, python: str, script: str, folder: str, lock: str, log: str, pip_wheel: str | None, wheels: str | None
) -> list[str]:
    """Make a virtual environment from a lock; ``wheels`` is a folder to take everything from, asking no index."""
    return [
        *("sh", "-c", LOGGED, "sh", log),
        *(python, script, "--venv", folder, "--lock", lock),
        *(("--pip-wheel", pip_wheel) if pip_wheel else ()),
        *(("--wheels", wheels, "--offline") if wheels else ()),
    ]


def drop(folder: str) -> list[str]:
    """Remove what was sent to be installed from."""
    return ["rm", "-rf", "--", folder]


def tail(path: str, *, offset: int) -> list[str]:
    """Print a file from a byte on; nothing when it is not there yet."""
    return ["sh", "-c", TAIL, "sh", path, str(offset + 1)]
