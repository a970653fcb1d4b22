"""Commands of a way from one host straight to another: its key, who lets it in, and one content over it. Pure."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterable

from launch.argv.ship import RECEIVE

MAKE_KEY = r"""
umask 077
folder=$1
for tool in ssh ssh-keygen; do
  command -v "$tool" >/dev/null 2>&1 || { echo "it has no $tool" >&2; exit 69; }
done
rm -rf -- "$folder" && mkdir -p -- "$folder" && cat >"$folder/known_hosts" || exit 74
ssh-keygen -q -t ed25519 -N '' -C '' -f "$folder/key" </dev/null >&2 || exit 74
cat "$folder/key.pub"
"""
"""Reads known_hosts; prints the public half of a new key. The private one never leaves the host."""

ADMIT = r"""
umask 077
LC_ALL=C
export LC_ALL
tag=$1
line=$(cat)
keys=$HOME/.ssh/authorized_keys
if [ -z "$line" ]; then
  [ -f "$keys" ] && grep -aq -e " $tag\$" "$keys" || exit 0
fi
[ ! -L "$keys" ] || { echo "$keys is a link" >&2; exit 73; }
made=$keys-$$
mkdir -p -- "$HOME/.ssh" || exit 74
if [ -f "$keys" ]; then
  cp -p -- "$keys" "$made" && { grep -av -e " $tag\$" "$keys" >"$made"; [ $? -le 1 ]; }
else
  : >"$made"
fi || { rm -f -- "$made"; exit 74; }
if [ -n "$line" ]; then
  printf '%s\n' "$line" >>"$made" || { rm -f -- "$made"; exit 74; }
fi
sync "$made" 2>/dev/null || sync
mv -f -- "$made" "$keys" || exit 74
"""
"""Takes every line with this tag out of authorized_keys and puts the one from stdin in; all at once, by rename.

The others are kept byte for byte, in whatever encoding they are: without C and -a, grep drops what is no text to it.
"""

SERVE = r"""
umask 077
set -f
folder=$1
set -- $SSH_ORIGINAL_COMMAND
[ "$1" != ready ] || { echo ready; exit 0; }
name=$1 offset=$2
case $name in "" | *[!0-9a-f]*) exit 64 ;; esac
case $offset in "" | *[!0-9]*) exit 64 ;; esac
length=$(sed -n "s/^$name //p" "$folder/bridge/contents" | head -n 1)
[ -n "$length" ] || { echo "that is not expected here" >&2; exit 64; }
{
  while sleep 1 >/dev/null && kill -0 $$; do [ ! -f "$folder/$name.part" ] || wc -c <"$folder/$name.part"; done
} 2>/dev/null &
telling=$!
sh "$folder/bridge/receive" "$folder" "$name" "$offset" "$length" "$name"
code=$?
kill "$telling" 2>/dev/null
exit $code
"""
"""All that the key opens: one expected content, appended at an offset. Prints how long it is, every second."""

SEND = r"""
path=$1 offset=$2 name=$3
shift 3
[ -f "$path" ] && [ ! -L "$path" ] || { echo "it is gone: $path" >&2; exit 66; }
tail -c "+$((offset + 1))" <"$path" | "$@" "$name $offset"
echo "code $?"
"""
"""Prints what the other host tells, and at the end with which exit code it ended."""

_PLAIN = re.compile(r"[^\"'\\\n\r\0]*")


def make_key(folder: str) -> list[str]:
    """A new key in ``folder`` on the host that sends; known_hosts comes on stdin."""
    return ["sh", "-c", MAKE_KEY, "sh", folder]


def admit(tag: str) -> list[str]:
    """On the host that receives: the line on stdin is the only one with this tag; with no line there is none."""
    return ["sh", "-c", ADMIT, "sh", tag]


def files(contents: Iterable[tuple[str, int]]) -> dict[str, bytes]:
    """What lies in the receiver's ``bridge`` folder: ``contents`` are the (sha256, bytes) that are expected."""
    listed = "".join(f"{digest} {length}\n" for digest, length in contents)
    return {"contents": listed.encode(), "receive": RECEIVE.encode(), "serve": SERVE.encode()}


def line(public_key: str, folder: str, *, until: str, tag: str) -> str | None:
    """The receiver's line of authorized_keys: the key runs SERVE and nothing else, ``until`` (YYYYMMDDhhmm) it ends.

    None when the folder's name cannot stand there.
    """
    if not _PLAIN.fullmatch(folder):
        return None
    command = shlex.join(["exec", "sh", f"{folder}/bridge/serve", folder])
    return f'restrict,expiry-time="{until}",command="{command}" {public_key} {tag}'


def send(path: str, offset: int, name: str, client: Iterable[str]) -> list[str]:
    """On the sender: the file from ``offset`` on, to be the content ``name`` there."""
    return ["sh", "-c", SEND, "sh", path, str(offset), name, *client]
