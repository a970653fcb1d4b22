"""Changing launch.toml as text, so that the user's comments and order stay. Pure: text in, text out."""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Mapping
from typing import Any

from launch.errors import Exit, LaunchError

HEADING = "# The hosts that `launch` knows; `launch hosts` shows them. Every key: `launch init` in an empty folder.\n"

TEMPLATE = """\
# launch.toml: the hosts that `launch` may use. The folder with this file is home: its dataset/ and out/ are pushed
# from, `launch sync-out` brings runs and weights back into it. Without any entry there is already the host `local`.
#
# `launch host add gpu8 --ssh root@gpu8.example.com:2222` adds a table like the one below and, after showing you its
# fingerprint, the host's key to launch.known_hosts beside this file.

# known_hosts = "launch.known_hosts"    # where the host keys are, in the format of OpenSSH

# secrets = ["WANDB_API_KEY"]           # names only; values: environment, launch.secrets (mode 0600) or the keyring
# secrets_file = "launch.secrets"       # NAME=value lines

# [hosts.gpu8]
# ssh = "root@gpu8.example.com:2222"    # user@name:port, or an alias of your ssh config
# root = "~/minimind"                   # folder on the host for runs, weights and data; rented: put it on the data disk
# executor = "auto"                     # auto | docker | venv | slurm; auto: docker where it is usable, else venv
# identity_file = "~/.ssh/id_ed25519"   # the key that lets you in, when ssh does not find it by itself
# gpus = 8                              # how many to use; unset: as many as there are
# python = "/opt/conda/bin/python"      # a ready-made interpreter to use as it is, instead of a new environment
# image = "minimind-launch:latest"      # the image that the docker executor uses
# registry = "registry.example.com/me"  # bring the image by push and pull through it, instead of over ssh
# registry_user = "robot"               # who logs in there, on both sides and for that moment only; unset: as it is
# registry_secret = "REGISTRY_PASSWORD" # the name of the secret with the password
# price_per_hour = 12.5                 # what an hour costs
# currency = "CNY"
# release_command = ""                  # what gives the host back, when there is a command for it
# secrets = []                          # the secrets that runs there get, instead of those above

# [hosts.local]                         # this machine; set only what should differ
# root = "local"                        # relative to this folder
"""


def add_host(text: str, name: str, values: Mapping[str, object]) -> str:
    """The text with a table for a new host at its end.

    Raises:
        LaunchError: INVALID when the table cannot simply be appended (say, hosts is an inline table).
    """
    lines = [f"{key} = {json.dumps(value, ensure_ascii=False)}\n" for key, value in values.items() if value is not None]
    before = text.rstrip()
    after = f"{before}\n\n[hosts.{name}]\n{''.join(lines)}" if before else f"[hosts.{name}]\n{''.join(lines)}"
    expected = _hosts(text) | {name: {key: value for key, value in values.items() if value is not None}}
    return _checked(after, expected, f"add a table [hosts.{name}]")


def change_host(text: str, name: str, values: Mapping[str, object]) -> str:
    """The text with other values in a host's table, where those given are not None; comments behind values stay.

    Raises:
        LaunchError: INVALID when the table is not written as ``[hosts.NAME]`` with its keys below.
    """
    new = {key: value for key, value in values.items() if value is not None}
    hosts, lines = _hosts(text), text.splitlines(keepends=True)
    start, end = _table(lines, name)
    while end > start + 1 and (not lines[end - 1].strip() or lines[end - 1].lstrip().startswith("#")):
        end -= 1
    for key, value in new.items() if start < len(lines) else ():
        written = f"{key} = {json.dumps(value, ensure_ascii=False)}"
        place = next((i for i in range(start + 1, end) if re.match(rf"\s*{key}\s*=", lines[i])), None)
        if place is not None:
            comment = re.search(r"\s+#[^\"']*$", lines[place].rstrip("\r\n"))
            lines[place] = f"{written}{comment[0] if comment else ''}\n"
        else:
            lines[end - 1] = lines[end - 1].rstrip("\r\n") + "\n"
            lines.insert(end, f"{written}\n")
            end += 1
    return _checked("".join(lines), hosts | {name: hosts.get(name, {}) | new}, f"change the table [hosts.{name}]")


def remove_host(text: str, name: str) -> str:
    """The text without the host's table; comments that stand before the next table stay with that one.

    Raises:
        LaunchError: INVALID when the table is not written as ``[hosts.NAME]`` with its keys below.
    """
    lines = text.splitlines(keepends=True)
    start, end = _table(lines, name)
    while end < len(lines) and end > start + 1 and lines[end - 1].lstrip().startswith("#"):
        end -= 1
    while start > 0 and end == len(lines) and not lines[start - 1].strip():
        start -= 1
    expected = {key: value for key, value in _hosts(text).items() if key != name}
    return _checked("".join(lines[:start] + lines[end:]), expected, f"remove the table of {name}")


def _table(lines: list[str], name: str) -> tuple[int, int]:
    """From a host's heading to the next one; both are the end when it has none."""
    header = re.compile(rf"""\s*\[\s*hosts\s*\.\s*(?:{name}|"{name}"|'{name}')\s*\]\s*(?:#.*)?""")
    start = next((i for i, line in enumerate(lines) if header.fullmatch(line.rstrip("\r\n"))), len(lines))
    return start, next((i for i in range(start + 1, len(lines)) if re.match(r"\s*\[", lines[i])), len(lines))


def _hosts(text: str) -> dict[str, Any]:
    return dict(tomllib.loads(text).get("hosts", {}))


def _checked(text: str, expected: Mapping[str, Any], by_hand: str) -> str:
    try:
        if _hosts(text) == expected:
            return text
        why = "its tables are written in a way that is not understood well enough to edit"
    except tomllib.TOMLDecodeError as error:
        why = f"it would not be valid TOML any more: {error}"
    raise LaunchError("launch.toml cannot be edited", why=why, remedy=f"{by_hand} by hand", code=Exit.INVALID)
