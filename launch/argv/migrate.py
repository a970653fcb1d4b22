"""Commands that receive what moves to a host: what has come of a content, giving contents their names, cleaning up."""

from __future__ import annotations

FOLDER = ".migrate"
"""Below the root of a host: what has come of contents, and the trial run."""

PARTS = r"""
cd "$1" 2>/dev/null || exit 0
sha() { if command -v sha256sum >/dev/null 2>&1; then sha256sum; else shasum -a 256; fi; }
while IFS= read -r name; do
  for file in "$name" "$name.part"; do
    if [ -f "$file" ]; then echo "$name $(wc -c <"$file" | tr -d ' ') $(sha <"$file" | cut -d' ' -f1)"; break; fi
  done
done
exit 0
"""
"""Reads names; prints of each that has begun: name, bytes, and the sha256 of those."""

PLACE = r"""
umask 077
folder=$1 pack=$2
cd "$folder" || exit 66
from=$folder
if [ -n "$pack" ]; then
  from=$folder/unpacked-$pack
  rm -rf -- "$from" && mkdir -- "$from" && tar -xf "$folder/$pack" -C "$from" || exit 74
fi
while IFS= read -r how && IFS= read -r mode && IFS= read -r name && IFS= read -r target; do
  dir=${target%/*}
  [ ! -d "$target" ] || { echo "is a folder: $target" >&2; exit 73; }
  mkdir -p -- "$dir" || exit 73
  made=$dir/.tmp-$name
  rm -f -- "$made"
  if [ "$how" = link ] && ln -- "$from/$name" "$made" 2>/dev/null; then :; else
    cp -- "$from/$name" "$made" || { rm -f -- "$made"; exit 74; }
  fi
  chmod "$mode" "$made" || exit 74
  sync "$made" 2>/dev/null || sync
  mv -f -- "$made" "$target" || exit 74
  sync "$dir" 2>/dev/null || :
done
[ -z "$pack" ] || rm -rf -- "$from"
rm -f -- "$folder/${pack:-$name}"
"""
"""Reads (link or copy, mode, name, absolute target) as lines; at the end drops the content, or the pack of them."""

DATA = r"""
cd "$1/dataset" 2>/dev/null || exit 0
for name in *.jsonl; do
  if [ -f "$name" ]; then printf '%s\0' "$name"; fi
done
"""
"""Prints the names of the data sets, NUL-terminated; a link to a file is one."""

REAL = r"""
while IFS= read -r path; do
  real=$(readlink -f -- "$path" 2>/dev/null) && [ -n "$real" ] || real=$path
  printf '%s\0' "$real"
done
"""
"""Reads paths; prints where each one really lies, NUL-terminated."""

CLEAN = r"""
rm -rf -- "${1:?}"
[ ! -d "$1" ]
"""


def parts(folder: str) -> list[str]:
    """What has come of contents; their names come on stdin."""
    return ["sh", "-c", PARTS, "sh", folder]


def place(folder: str, *, pack: str = "") -> list[str]:
    """Give one content, or those in a pack, their names, which come on stdin."""
    return ["sh", "-c", PLACE, "sh", folder, pack]


def data(root: str) -> list[str]:
    """The names of the data sets of a host."""
    return ["sh", "-c", DATA, "sh", root]


def real_paths() -> list[str]:
    """Where paths really lie, links followed; they come on stdin."""
    return ["sh", "-c", REAL]


def clean(folder: str) -> list[str]:
    """Remove a folder of ours on a host."""
    return ["sh", "-c", CLEAN, "sh", folder]


def answers_fast(length_bytes: int) -> list[str]:
    """Send so many bytes, to see how fast they come."""
    return ["head", "-c", str(length_bytes), "/dev/urandom"]


def swallow() -> list[str]:
    """Take everything and keep nothing, to see how fast it goes."""
    return ["sh", "-c", "cat >/dev/null"]
