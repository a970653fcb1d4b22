"""Commands that ask a host for environments, code and pieces of images below its root, and remove what nobody needs."""

from __future__ import annotations

from collections.abc import Iterable

HELD = r"""
held() {
  case $1 in
    env/.making-*) path_=${1#env/.making-} && echo "env/${path_%%.*}.lock" ;;
    env/*) echo "${1%%.from*}.lock" ;;
    images/*) echo images/lock ;;
  esac
}
young() {
  case $1 in
    env/.making-*) ! command -v flock >/dev/null 2>&1 || return 1 ;;
    code/.tmp-* | env/*.from* | images/*) ;;
    *) return 1 ;;
  esac
  [ -n "$(find "$1" -mmin -10 2>/dev/null | head -n 1)" ]
}
"""
"""The lock that whoever makes a path holds. What is made without one is left alone for ten minutes after its last
change: a file on its way grows, an installer writes its log all the time, a shipment's lock is free between pieces."""

LIST = r"""
root=$1
case $root in "~") root=$HOME ;; "~/"*) root=$HOME/${root#"~/"} ;; esac
cd "$root" 2>/dev/null || exit 0
for path in env/* env/.making-* code/* code/.tmp-* images/*; do
  [ -e "$path" ] || continue
  case $path in *.lock | images/lock) continue ;; esac
  state=whole
  case $path in
    env/.making-* | env/*.from* | code/.tmp-*)
      state=left
      lock=$(held "$path")
      if young "$path"; then state=making; elif [ -e "$lock" ] && command -v flock >/dev/null 2>&1; then
        flock -n "$lock" true || state=making
      fi ;;
    env/*) [ -e "$path/.complete" ] || state=half ;;
    images/*) ! young "$path" || state=making ;;
  esac
  size=$(du -sk "$path" 2>/dev/null) && echo "${size%%[!0-9]*} $state $path"
done
exit 0
"""
"""Prints KiB, a word on its state, and the path below the root. ``left`` is what somebody made something in or from."""

REMOVE = r"""
root=$1
case $root in "~") root=$HOME ;; "~/"*) root=$HOME/${root#"~/"} ;; esac
shift
cd "$root" || exit 66
code=0
for path in "$@"; do
  lock=$(held "$path")
  (
    ! young "$path" || exit 75
    if [ -n "$lock" ] && command -v flock >/dev/null 2>&1; then
      exec 9>>"$lock" || exit 74
      flock -n 9 || exit 75
    fi
    rm -rf -- "./$path"
  ) || { echo "$path" && code=1; }
done
exit "$code"
"""
"""Removes paths below the root, but none that another call is making; prints what it had to leave."""


def listing(root: str) -> list[str]:
    """What lies below a root that can be made again."""
    return ["sh", "-c", HELD + LIST, "sh", root]


def remove(root: str, paths: Iterable[str]) -> list[str]:
    """Remove some of it."""
    return ["sh", "-c", HELD + REMOVE, "sh", root, *paths]
