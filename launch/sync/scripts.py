"""What runs on the host while files are compared and fetched. find, stat, head are used where they are, never needed.

Nothing here needs more than sh, tail, tar and sha256sum (or shasum). Lists go in as lines, because a shell can read
nothing else without help: names with a newline are refused before they get here.
"""

LIST = r"""
cd "$1" 2>/dev/null || exit 66
follow=$2
shift 2
for top in "$@"; do
  if [ -e "$top" ] || [ -L "$top" ]; then set -- "$@" "$top"; fi
  shift
done
[ $# -gt 0 ] || { printf 'end\0'; exit 0; }
have() { command -v "$1" >/dev/null 2>&1; }
tarred() {
  set -f
  set -- $(tar --numeric-owner --full-time -cvvf /dev/null -- "$1" 2>/dev/null)
  case $3 in "" | *[!0-9]*) return 1 ;; esac
  printf '%s - %sT%s -' "$3" "$4" "$5"
}
measure() {
  stat -c '%s %d.%i %Y %Z' -- "$1" 2>/dev/null || stat -f '%z %d.%i %m %c' "$1" 2>/dev/null ||
    { have wc && printf '%d - - -' "$(wc -c <"$1")"; } || (tarred "$1") || printf '? - - -'
}
visit() {
  if [ -L "$1" ]; then
    printf 'l 0 - - - %s\0' "$1"
  elif [ -f "$1" ]; then
    printf 'f %s %s\0' "$(measure "$1")" "$1"
  elif [ -d "$1" ]; then
    walk "$1"
  elif [ -e "$1" ]; then
    printf 'o 0 - - - %s\0' "$1"
  fi
}
walk() {
  [ -r "$1" ] && [ -x "$1" ] || { echo "$1: cannot be read" >&2; code=1; }
  for entry in "$1"/* "$1"/.[!.]* "$1"/..?*; do visit "$entry"; done
}
code=0
if have find && find . -maxdepth 0 -printf '' 2>/dev/null; then
  find "$follow" "$@" ! -type d -printf '%y %s %D.%i %T@ %C@ %p\0'
  code=$?
else
  for top in "$@"; do
    if [ "$follow" = -H ] && [ -d "$top" ]; then walk "$top"; else visit "$top"; fi
  done
fi
printf 'end\0'
exit $code
"""
"""Prints, NUL-terminated: kind (f: regular), bytes, device.inode, mtime, ctime (- where unknown), path; ``end``."""

HASH = r"""
cd "$1" || exit 66
have() { command -v "$1" >/dev/null 2>&1; }
if have sha256sum; then hash() { sha256sum; }; else hash() { shasum -a 256; }; fi
if have head; then first() { head -c "$1"; }; else first() { tail -c +1; }; fi
while IFS= read -r much && IFS= read -r path; do
  sum=
  if [ -f "$path" ] && [ -r "$path" ]; then
    case $much in
      all) sum=$(hash <"$path") ;;
      *) sum=$(first "$much" <"$path" | hash) ;;
    esac
  fi
  sum=${sum%% *}
  echo "${sum:--}"
done
"""
"""Reads pairs of lines (``all`` or a number of bytes, path); prints a line each: sha256 of that much, or -."""

BATCH = r"""
cd "$1" || exit 66
if command -v head >/dev/null 2>&1; then first() { head -c "$1"; }; else first() { tail -c +1; }; fi
while IFS= read -r much && IFS= read -r path; do
  if [ -f "$path" ]; then first "$much" <"$path"; fi
done
"""
"""Reads pairs of lines (bytes, path); prints those files one after the other."""
