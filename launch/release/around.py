"""What a host has besides out/ and runs/: nothing brings it home, so it is told before the host goes."""

from __future__ import annotations

from launch.sync.listing import WEIGHTS_SUFFIXES
from launch.transport import Transport

BESIDE = r"""
root=$1
cd / || exit 0
list() {
  for place in "$HOME" "${root%/*}" "$root" /root/autodl-tmp /workspace /mnt/data; do
    [ -d "$place" ] && [ "$place" != / ] || continue
    for path in "$place"/* "$place"/.[!.]*; do
      case $path in
      "$root"/out | "$root"/runs | "$root"/env | "$root"/code | "$root"/images | "$root"/.migrate) continue ;;
      esac
      [ "$path" != "$root" ] || continue
      case $root/ in "$path"/*) continue ;; esac
      [ -e "$path" ] && [ ! -L "$path" ] && printf '%s\0' "$path"
    done
  done
}
list | tr '\n\0' '?\n' | sed 's/^/-\t/'
list | if command -v timeout >/dev/null; then timeout 20 xargs -0 du -skx --; else xargs -0 du -skx --; fi 2>/dev/null
exit 0
"""
"""Prints ``-`` and each path, then kibibytes and path of those that could be measured in 20 s."""

WEIGHTS = r"""
cd "$1" 2>/dev/null || exit 0
find . \( -path ./out -o -path ./runs -o -path ./env -o -path ./code -o -path ./images -o -path ./.migrate \
  -o -name site-packages -o -name dist-packages \) -prune -o \
  -type f \( -name '*.pth' -o -name '*.safetensors' \) -size +0 -print0 2>/dev/null
exit 0
"""
"""Prints weights files that lie below the root, NUL-terminated; Python's own .pth files are none."""


def beside(transport: Transport, root: str) -> tuple[tuple[str, int | None], ...]:
    """Paths in the root that nobody looks after, beside it and at home, with their bytes, largest first.

    Bytes are None for what could not be measured in time; that comes first.
    """
    told = transport.read(["sh", "-c", BESIDE, "sh", root], check=False, timeout_s=90).stdout
    found: dict[str, int | None] = {}
    for line in told.decode("utf-8", "replace").splitlines():
        size, _, path = line.partition("\t")
        if path and (size == "-" or size.isdecimal()):
            found[path] = int(size) * 1024 if size.isdecimal() else found.get(path)
    return tuple(sorted(found.items(), key=lambda item: (item[1] is not None, -(item[1] or 0))))


def stray_weights(transport: Transport, root: str) -> list[str]:
    """Weights files below the root that are in neither out/ nor runs/, by their names below it."""
    told = transport.read(["sh", "-c", WEIGHTS, "sh", root], check=False).stdout.decode("utf-8", "replace")
    names = (name.removeprefix("./") for name in told.split("\0"))
    return [name for name in names if name.endswith(WEIGHTS_SUFFIXES)]
