"""Commands that ask a host for environments, code and pieces of images, and remove what nobody needs."""

from __future__ import annotations

from collections.abc import Iterable

LIST = r"""
root=$1
case $root in "~") root=$HOME ;; "~/"*) root=$HOME/${root#"~/"} ;; esac
cd "$root" 2>/dev/null || exit 0
for path in env/* code/* images/*; do
  [ -e "$path" ] || continue
  case $path in *.lock | images/lock) continue ;; esac
  whole=0
  if [ "${path%%/*}" != env ] || [ -e "$path/.complete" ]; then whole=1; fi
  size=$(du -sk "$path" 2>/dev/null) && echo "${size%%[!0-9]*} $whole $path"
done
exit 0
"""
"""Prints KiB, whether it is whole, and the path below the root."""

REMOVE = r"""
root=$1
case $root in "~") root=$HOME ;; "~/"*) root=$HOME/${root#"~/"} ;; esac
shift
cd "$root" || exit 66
code=0
for path in "$@"; do
  case $path in env/*) held=$path.lock ;; images/*) held=images/lock ;; *) held= ;; esac
  (
    if [ -n "$held" ] && command -v flock >/dev/null 2>&1; then
      exec 9>>"$held" || exit 74
      flock -n 9 || exit 75
    fi
    rm -rf -- "./$path"
  ) || { echo "$path" && code=1; }
done
exit "$code"
"""
"""Removes paths below the root, but none that another call is making; prints what it had to leave."""

IMAGES = r"""
ids=$(docker image ls --all --quiet --no-trunc --filter "label=$1") || exit 69
[ -z "$ids" ] || docker image inspect --format "$2" $(echo "$ids" | sort -u)
"""


def listing(root: str) -> list[str]:
    """What lies below a root that can be made again."""
    return ["sh", "-c", LIST, "sh", root]


def remove(root: str, paths: Iterable[str]) -> list[str]:
    """Remove some of it."""
    return ["sh", "-c", REMOVE, "sh", root, *paths]


def images(label: str) -> list[str]:
    """Every image with a label, one JSON object a line: id, bytes, names, layers."""
    told = '{"id":{{json .Id}},"bytes":{{.Size}},"names":{{json .RepoTags}},"layers":{{json .RootFS.Layers}}}'
    return ["sh", "-c", IMAGES, "sh", label, told]


def remove_image(image_id: str) -> list[str]:
    """Remove an image that no container uses; the engine refuses otherwise."""
    return ["docker", "rmi", image_id]


def packages(image_id: str, script: str) -> list[str]:
    """Run a Python script in a fresh container of an image, without a network."""
    options = ("--rm", "--pull", "never", "--network", "none", "--cap-drop", "ALL", "--entrypoint", "python")
    return ["docker", "run", *options, image_id, "-c", script]
