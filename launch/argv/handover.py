"""Handing secrets to a run: over stdin, into a file that does not stay."""

from __future__ import annotations

from collections.abc import Sequence

WITH_SECRETS = r"""
umask 077
file=$1 length=$2 container=$3 started=$4
shift 4
drop() { rm -rf -- "${file%/*}"; }
mkdir -p -- "${file%/*/*}" && mkdir -- "${file%/*}" || exit 74
trap 'drop; exit 1' HUP INT TERM
dd bs=1 count="$length" of="$file" 2>/dev/null && [ "$(wc -c <"$file")" -eq "$length" ] || { drop; exit 74; }
"$@"
code=$?
if [ "$code" -ne 0 ] || [ -z "$container" ]; then
  drop
  exit "$code"
fi
(
  trap '' HUP
  while [ ! -d "$started" ]; do
    case $(docker container inspect --format '{{.State.Status}}' "$container") in
      created | running) sleep 0.2 2>/dev/null || sleep 1 ;;
      *) break ;;
    esac
  done
  drop
) </dev/null >/dev/null 2>&1 &
"""
"""Puts so many bytes of stdin into a new file in a new folder, runs a command with the rest, and sees to the removal.

``dd`` reads byte by byte, so that the command finds the rest. A container reads the file after the command has ended:
then somebody stays behind until the attempt has its folder, which comes after the reading.
"""


def with_secrets(
    argv: Sequence[str], *, file: str, length_bytes: int, container: str = "", started: str = ""
) -> list[str]:
    """The command with its secrets, the first so many bytes of stdin, in ``file``, whose folder must not exist yet.

    The folder is removed when the command ends; with a container's name, when the folder ``started`` exists or the
    container has ended.
    """
    return ["sh", "-c", WITH_SECRETS, "sh", file, str(length_bytes), container, started, *argv]
