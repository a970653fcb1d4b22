"""Commands that bring an image to a host piece by piece: what is there, one more piece, all of it into the engine."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from launch.facts import BRIEF

OFFSET_DIFFERS, CANNOT_STORE, BUSY, TORN, NO_ENGINE = 65, 74, 75, 70, 69

LOOK = (
    BRIEF
    + r"""folder=$1 pieces=$2
docker version --format 'engine={{.Server.Version}}' 2>/dev/null || exit 69
ids=$(docker image ls --all --quiet --no-trunc) || exit 69
[ -z "$ids" ] || docker image inspect --format 'layers={{json .RootFS.Layers}}' $(echo "$ids" | sort -u)
for tool in zstd gzip; do if command -v "$tool" >/dev/null 2>&1; then echo "tool=$tool"; fi; done
at=$(docker info --format '{{.DockerRootDir}}' 2>/dev/null)
if [ -d "$at" ]; then echo "engine_free=$(free "$at")"; fi
echo "folder_free=$(free "$folder")"
sha() { if command -v sha256sum >/dev/null 2>&1; then sha256sum; else shasum -a 256; fi; }
[ -z "$pieces" ] || for file in "$folder"/*.raw "$folder"/*.gz "$folder"/*.zst "$folder"/*.part; do
  [ -f "$file" ] || continue
  name=${file##*/}
  echo "piece=${name%.part} $(wc -c <"$file" | tr -d ' ') $(sha <"$file" | cut -d' ' -f1)"
done
exit 0
"""
)
"""Prints key=value lines: the engine, the layers of each image, tools, free space, and of each piece what has come."""

RECEIVE = r"""
umask 077
folder=$1 name=$2 offset=$3 length=$4 digest=$5
mkdir -p -- "$folder" || exit 74
part=$folder/$name.part
if command -v flock >/dev/null 2>&1; then
  exec 9>>"$folder/lock" || exit 74
  flock -n 9 || exit 75
fi
[ ! -f "$folder/$name" ] || mv -f -- "$folder/$name" "$part" || exit 74
[ "$offset" -ne 0 ] || rm -f -- "$part"
have=0
[ ! -f "$part" ] || have=$(wc -c <"$part")
[ "$have" -eq "$offset" ] || exit 65
cat >>"$part" || exit 74
[ "$(wc -c <"$part")" -eq "$length" ] || exit 70
if command -v sha256sum >/dev/null 2>&1; then found=$(sha256sum <"$part"); else found=$(shasum -a 256 <"$part"); fi
if [ "${found%% *}" != "$digest" ]; then
  rm -f -- "$part"
  exit 70
fi
mv -f -- "$part" "$folder/$name" || exit 74
"""
"""Appends stdin to what has come of a piece. A killed one leaves its bytes; only their hash makes them believed."""

ALONE = r"""
if command -v flock >/dev/null 2>&1; then
  exec 9>>lock || exit 74
  flock -n 9 || exit 75
fi
"""
"""In the folder of the pieces: nobody else receives, loads or removes them meanwhile."""

LOAD = (
    'cd "$1" || exit 66\nshift\n'
    + ALONE
    + r"""{
  while [ $# -gt 0 ]; do
    case $1 in
    zst) zstd -dcq <"$2" ;;
    gz) gzip -dc <"$2" ;;
    *) cat <"$2" ;;
    esac || exit 1
    shift 2
  done
} | docker load --quiet
"""
)
"""The pieces one after the other are the archive. One that cannot be unpacked cuts it short: the engine refuses it."""

FORGET = 'cd "$1" 2>/dev/null || exit 0\nshift\n' + ALONE + 'for name in "$@"; do rm -f -- "$name" "$name.part"; done'


def look(folder: str, *, pieces: bool) -> list[str]:
    """What the engine of a host has; with ``pieces`` what has come of each piece, which takes reading them."""
    return ["sh", "-c", LOOK, "sh", folder, "pieces" if pieces else ""]


def receive(folder: str, name: str, *, offset: int, length: int, digest: str) -> list[str]:
    """Append stdin at ``offset``; the piece gets its name when it has ``length`` bytes with this sha256."""
    return ["sh", "-c", RECEIVE, "sh", folder, name, str(offset), str(length), digest]


def load(folder: str, pieces: Sequence[tuple[str, str]]) -> list[str]:
    """Load the archive that (kind, name) make up: ``zst``, ``gz`` or ``raw``."""
    return ["sh", "-c", LOAD, "sh", folder, *(word for piece in pieces for word in piece)]


def forget(folder: str, names: Iterable[str]) -> list[str]:
    """Remove pieces, whole ones and begun ones."""
    return ["sh", "-c", FORGET, "sh", folder, *names]


def save(image_id: str) -> list[str]:
    """Write an image to stdout as an archive."""
    return ["docker", "save", image_id]


def compress() -> list[str]:
    """Pack stdin to stdout, with every core."""
    return ["zstd", "-q", "-c", "-T0", "-3"]
