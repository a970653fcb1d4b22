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
printf 'time %s - - - now\0' "$(date +%s 2>/dev/null || echo -)"
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
"""Prints, NUL-terminated: kind (f: regular), bytes, device.inode, mtime, ctime (- where unknown), path; ``end``.

The first entry is no file: its kind is ``time``, and it has the host's clock, in seconds, in place of bytes.
"""

HASH = r"""
cd "$1" || exit 66
shift
set -f
newline='
'
have() { command -v "$1" >/dev/null 2>&1; }
if have sha256sum; then sums() { sha256sum "$@"; }; else sums() { shasum -a 256 "$@"; }; fi
if have openssl; then
  case $(openssl dgst -sha256 -r </dev/null 2>/dev/null) in
    e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855*) sums() { openssl dgst -sha256 -r "$@"; } ;;
  esac
fi
if have head; then first() { head -c "$1"; }; else first() { tail -c +1; }; fi
say() {
  sum=${1#\\}
  sum=${sum%%[ *]*}
  echo "${sum:--}"
}
one() {
  told=
  if [ -f "$2" ] && [ -r "$2" ]; then
    case $1 in
      all) told=$(sums <"$2") ;;
      *) told=$(first "$1" <"$2" | sums) ;;
    esac
  fi
  say "$told"
}
many() {
  [ $# -gt 0 ] || return 0
  told=$(sums "$@" 2>/dev/null)
  count=0 usual=$IFS IFS=$newline
  for line in $told; do count=$((count + 1)); done
  if [ "$count" -eq $# ]; then
    for line in $told; do say "$line"; done
    IFS=$usual
  else
    IFS=$usual
    for path in "$@"; do one all "$path"; done
  fi
}
length=0
while IFS= read -r much && IFS= read -r path; do
  if [ "$much" = all ] && [ -f "$path" ] && [ -r "$path" ]; then
    set -- "$@" "$path"
    length=$((length + ${#path}))
    [ $# -ge 200 ] || [ "$length" -gt 30000 ] || continue
    many "$@"
  else
    many "$@"
    one "$much" "$path"
  fi
  set --
  length=0
done
many "$@"
"""
"""Reads pairs of lines (``all`` or a number of bytes, path); prints a line each: sha256 of that much, or -.

Whole files that follow one another share a process; when its answer has not one line a file, each is asked for by
itself. openssl, where it is, is several times as fast as sha256sum.
"""

ARCHIVE = r"""
cd "$1" || exit 66
shift
unset TAR_OPTIONS
while IFS= read -r path; do
  if [ -f "$path" ] && [ ! -L "$path" ]; then set -- "$@" "$path"; fi
done
[ $# -gt 0 ] || exit 0
exec tar -cf - "$@"
"""
"""Reads paths, a line each; prints those files as one archive."""
