"""Secrets of the laptop: where they are found, a type that does not print them, and a filter for what is printed."""

from __future__ import annotations

import json
import os
import re
import stat
from collections.abc import Iterable, Mapping, MutableMapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn
from urllib.parse import quote

from launch.errors import Exit, LaunchError

FILE = "launch.secrets"
KEYRING_SERVICE = "minimind-launch"
WANDB = "WANDB_API_KEY"
"""Taken without being named in launch.toml when a run logs to wandb."""
NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
SHORTEST = 8
MASK = "*****"

_known: dict[str, None] = {}


class Secret:
    """A value that shows as ``*****`` wherever it is printed or formatted. ``source`` says where it was found."""

    __slots__ = ("_value", "name", "source")

    def __init__(self, name: str, value: str, *, source: str) -> None:
        self.name, self.source, self._value = name, source, value
        if len(value) >= SHORTEST:  # hiding "yes" wherever it stands would garble everything
            for form in (value, json.dumps(value)[1:-1], json.dumps(value, ensure_ascii=False)[1:-1], quote(value)):
                _known[form] = None

    def reveal(self) -> str:
        """The value itself: for the stdin of a command and nothing else."""
        return self._value

    def __repr__(self) -> str:
        return MASK

    def __format__(self, _spec: str) -> str:
        return MASK

    def __reduce_ex__(self, _protocol: Any) -> NoReturn:
        raise TypeError("a secret is not stored")


def redact(text: str) -> str:
    """The text with every known secret's value replaced."""
    for form in sorted(_known, key=len, reverse=True):
        text = text.replace(form, MASK)
    return text


def redact_stream(data: bytes) -> tuple[bytes, bytes]:
    """Bytes with every known value replaced, and the end of them that may be the beginning of a value."""
    held = 0
    for form in sorted((form.encode() for form in _known), key=len, reverse=True):
        data = data.replace(form, MASK.encode())
        ends = (n for n in range(min(len(form) - 1, len(data)), 0, -1) if data.endswith(form[:n]))
        held = max(held, next(ends, 0))
    return (data[:-held], data[-held:]) if held else (data, b"")


def any_known() -> bool:
    """Whether there is anything to hide."""
    return bool(_known)


def payload(secrets: Mapping[str, Secret]) -> bytes:
    """What a host is sent: one JSON object from names to values."""
    return json.dumps({name: secret.reveal() for name, secret in secrets.items()}).encode()


@dataclass(frozen=True, kw_only=True)
class Vault:
    """What was found on this laptop. ``trouble`` is why the file may not be used, in words."""

    file: Path
    found: Mapping[str, Secret]
    trouble: str | None = None

    def pick(self, names: Iterable[str], *, optional: Iterable[str] = ()) -> dict[str, Secret]:
        """The secrets of these names, and of those optional ones that were found.

        Raises:
            LaunchError: INVALID when one is missing, too short to be hidden, or lies in a file that others can read.
        """
        names = list(names)
        for name in names:
            if name not in self.found:
                raise LaunchError(
                    f"the secret {name} was not found",
                    why=f"it is in none of: the environment, {self.file}, the keyring ({KEYRING_SERVICE})",
                    remedy=f"write {name}=… into {self.file}, mode 0600; `launch secrets check` shows what is found",
                    code=Exit.INVALID,
                )
        picked = {name: self.found[name] for name in (*names, *optional) if name in self.found}
        for name, secret in picked.items():
            if self.trouble and secret.source == str(self.file):
                raise LaunchError(
                    f"the secret {name} is not used",
                    why=self.trouble,
                    remedy=f"chmod 600 {self.file}, as its owner; if others can log in here, get a new secret",
                    code=Exit.INVALID,
                )
            if len(secret.reveal()) < SHORTEST:
                raise LaunchError(
                    f"the secret {name} is not used",
                    why=f"it has fewer than {SHORTEST} characters, so it cannot be hidden in what is printed",
                    remedy="give the whole key; what is not secret belongs into the trainer's flags",
                    code=Exit.INVALID,
                )
        return picked


def gather(names: Iterable[str], *, environ: MutableMapping[str, str], file: Path, keyring: bool = True) -> Vault:
    """Look for secrets in the environment (they are taken out of it), the file, and the keyring where there is one."""
    names = list(dict.fromkeys(names))
    values, trouble = _read(file)
    found = {name: Secret(name, values[name], source=str(file)) for name in names if values.get(name)}
    for name in names:
        if value := environ.pop(name, ""):
            found[name] = Secret(name, value, source="environment")
    missing = [name for name in names if name not in found]
    if missing and keyring:
        found |= _from_keyring(missing)
    return Vault(file=file, found=found, trouble=trouble)


def shape(file: Path) -> str | None:
    """What is wrong with the file's owner or mode; None when nothing is, or when there is no file."""
    try:
        status = file.stat()
    except OSError:
        return None
    if status.st_uid != os.geteuid():
        return f"{file} belongs to another user (uid {status.st_uid})"
    mode = stat.S_IMODE(status.st_mode)
    return f"{file} has mode {mode:04o}: others can read or write it" if mode & 0o077 else None


def _read(file: Path) -> tuple[dict[str, str], str | None]:
    try:
        text = file.read_text(encoding="utf-8")
    except FileNotFoundError:
        return {}, None
    except (OSError, UnicodeDecodeError) as error:
        return {}, f"{file} cannot be read: {getattr(error, 'strerror', None) or 'it is not UTF-8 text'}"
    lines = (line.strip().removeprefix("export ") for line in text.splitlines())
    pairs = (line.partition("=") for line in lines if line and not line.startswith("#"))
    return {name.strip(): _unquoted(value.strip()) for name, _, value in pairs}, shape(file)


def _unquoted(value: str) -> str:
    return value[1:-1] if len(value) > 1 and value[0] == value[-1] and value[0] in "\"'" else value


def _from_keyring(names: list[str]) -> dict[str, Secret]:
    try:
        import keyring
    except ImportError:
        return {}
    found: dict[str, Secret] = {}
    for name in names:
        try:
            value = keyring.get_password(KEYRING_SERVICE, name)
        except Exception:  # locked, or no service behind the library: then nothing is found there
            return found
        if value:
            found[name] = Secret(name, value, source="keyring")
    return found
