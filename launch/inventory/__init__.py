"""launch.toml: which hosts there are and how to reach them. Reads and checks; writes nothing."""

from __future__ import annotations

import os
import re
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal, cast, get_args

from launch import secrets
from launch.errors import Exit, LaunchError, printable
from launch.inventory.words import expanded as _expanded
from launch.inventory.words import kind_of as _kind
from launch.inventory.words import nearest as _nearest

FILE = "launch.toml"
KNOWN_HOSTS = "launch.known_hosts"
LOCAL = "local"
DEFAULT_ROOT = "~/minimind"
REGISTRY = re.compile(r"(localhost|[a-z0-9-]+(\.[a-z0-9-]+)+|[a-z0-9-]+(?=:))(:\d+)?(/[a-z0-9]+([._-]+[a-z0-9]+)*)*")
HOST_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_-]*")

ExecutorName = Literal["auto", "docker", "venv", "slurm"]


@dataclass(frozen=True, kw_only=True)
class SshAddress:
    """``user@name:port`` taken apart; ``name`` may be an alias of the ssh config, and what is None is left to that."""

    user: str | None
    name: str
    port: int | None


@dataclass(frozen=True, kw_only=True)
class Host:
    """One machine. ``ssh`` is None for this machine; ``root`` may begin with ``~/``, meant on the host."""

    name: str
    ssh: str | None
    root: str
    executor: ExecutorName = "auto"
    price_per_hour: float | None = None
    currency: str = "CNY"
    release_command: str | None = None
    gpus: int | None = None
    identity_file: Path | None = None
    python: str | None = None
    image: str | None = None
    registry: str | None = None
    registry_user: str | None = None
    registry_secret: str | None = None
    secrets: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Inventory:
    """Every host, and the home folder: the one with launch.toml, else the working directory; the secrets once found."""

    path: Path | None
    home: Path
    hosts: Mapping[str, Host]
    known_hosts: Path
    ssh_config: Path | None = None
    secrets_file: Path = Path(secrets.FILE)
    vault: secrets.Vault | None = None

    def host(self, name: str) -> Host:
        """The host of this name.

        Raises:
            LaunchError: INVALID, with the names there are.
        """
        if name in self.hosts:
            return self.hosts[name]
        raise LaunchError(
            f"there is no host {name!r}{_nearest(name, self.hosts)}",
            why=f"{self.path or 'no launch.toml was found, so this session'} knows: {', '.join(sorted(self.hosts))}",
            remedy=f"launch host add {name if HOST_NAME.fullmatch(name) else 'NAME'} --ssh user@address:port",
            code=Exit.INVALID,
        )


def find(explicit: Path | None, *, cwd: Path, environ: Mapping[str, str]) -> Path | None:
    """The launch.toml to use: the one asked for, LAUNCH_INVENTORY's, or the first found upward from ``cwd``."""
    asked = explicit or (Path(environ["LAUNCH_INVENTORY"]) if environ.get("LAUNCH_INVENTORY") else None)
    if asked is not None:
        return cwd / _expanded(str(asked))
    return next((p for folder in (cwd, *cwd.parents) if os.path.lexists(p := folder / FILE)), None)


def load(explicit: Path | None, *, cwd: Path, environ: Mapping[str, str]) -> Inventory:
    """Read the inventory; without any file there is still the host ``local``.

    Raises:
        LaunchError: INVALID when the file is missing, unreadable or says something that is not understood.
    """
    path = find(explicit, cwd=cwd, environ=environ)
    text = "" if path is None else read_text(path)
    return parse(text, path=path, home=cwd if path is None else path.parent, environ=environ)


def parse(text: str, *, path: Path | None, home: Path, environ: Mapping[str, str]) -> Inventory:
    """The inventory that this text of launch.toml means; LAUNCH_SSH_CONFIG names another ssh config.

    Raises:
        LaunchError: INVALID, naming the file and the key or line.
    """
    try:
        table = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        why, remedy = f"it is not valid TOML: {error}", "correct that line; `launch init` writes an example"
        raise _unusable(path, why, remedy) from error
    config = environ.get("LAUNCH_SSH_CONFIG")
    return build(table, path=path, home=home, ssh_config=home / _expanded(config) if config else None)


def build(table: Mapping[str, Any], *, path: Path | None, home: Path, ssh_config: Path | None = None) -> Inventory:
    """Check a parsed launch.toml and make the inventory of it.

    Raises:
        LaunchError: INVALID, naming the file and the key.
    """
    where = str(path or FILE)
    _known_keys(table, ("known_hosts", "secrets", "secrets_file", "hosts"), where=where, prefix="")
    known_hosts = _typed(table, "known_hosts", str, where=where, prefix="") or KNOWN_HOSTS
    entries = _typed(table, "hosts", dict, where=where, prefix="") or {}
    names = _secrets(table, where=where, prefix="") or ()
    tables = entries | {LOCAL: entries.get(LOCAL, {})}
    hosts = {name: _host(name, entry, home=home, where=where, secret_names=names) for name, entry in tables.items()}
    secrets_file = _typed(table, "secrets_file", str, where=where, prefix="") or secrets.FILE
    return Inventory(
        path=path,
        home=home,
        hosts=MappingProxyType(hosts),
        known_hosts=home / _expanded(known_hosts),
        ssh_config=ssh_config,
        secrets_file=home / _expanded(secrets_file),
    )


def parse_ssh(text: str) -> SshAddress:
    """Take ``[user@]name[:port]`` apart; an IPv6 address with a port is written ``[::1]:22``.

    Raises:
        ValueError: saying what is wrong.
    """
    user, at, rest = text.rpartition("@")
    bracketed = re.fullmatch(r"\[([\w.%:-]+)\](?::(\d+))?", rest)
    if bracketed:
        name, port = bracketed[1], bracketed[2]
    elif rest.count(":") > 1:
        name, port = rest, None
    else:
        name, colon, port = rest.partition(":")
        port = port if colon else None
    if not re.fullmatch(r"[\w.%:][\w.%:-]*", name) or (at and not re.fullmatch(r"[\w.][\w.@+-]*", user)):
        raise ValueError('it must look like "user@name:port", "name", or an alias of the ssh config')
    if port is not None and not (port.isdecimal() and 0 < int(port) < 65536):
        raise ValueError(f"the port must be a number from 1 to 65535, not {port!r}")
    return SshAddress(user=user or None, name=name, port=int(port) if port else None)


def read_text(path: Path) -> str:
    """The text of a launch.toml.

    Raises:
        LaunchError: INVALID when there is none that can be read.
    """
    try:
        return path.read_bytes().decode("utf-8-sig")
    except FileNotFoundError as error:
        raise _unusable(path, "there is no such file", "launch init") from error
    except IsADirectoryError as error:
        raise _unusable(path, "it is a folder, not a file", f"move {path} away; `launch init` writes one") from error
    except OSError as error:
        raise _unusable(path, error.strerror or str(error), f"make {path} readable") from error
    except UnicodeDecodeError as error:
        raise _unusable(path, f"it is not UTF-8 text (byte {error.start})", "save it as UTF-8") from error


def _unusable(path: Path | None, why: str, remedy: str) -> LaunchError:
    return LaunchError(f"{path or FILE} cannot be used", why=why, remedy=remedy, code=Exit.INVALID)


def _host(name: str, entry: object, *, home: Path, where: str, secret_names: tuple[str, ...]) -> Host:
    prefix = f"hosts.{name}"
    if not HOST_NAME.fullmatch(name):
        raise _wrong(where, prefix, "a host's name has letters, digits, - and _ only", "rename that table")
    if not isinstance(entry, dict):
        raise _wrong(
            where, prefix, f"it must be a table, not {_kind(entry)}", f"write [hosts.{name}] and keys below it"
        )
    _known_keys(entry, (*_KEYS, "secrets"), where=where, prefix=prefix)
    own_secrets = _secrets(entry, where=where, prefix=prefix)
    values = {key: _typed(entry, key, kind, where=where, prefix=prefix) for key, kind in _KEYS.items()}
    for key, (holds, says) in _RULES.items():
        if values[key] is not None and not holds(values[key]):
            shown = "" if key == "registry_secret" else f", not {values[key]!r}"  # it may be the value itself
            raise _wrong(where, f"{prefix}.{key}", f"{says}{shown}", "correct it")
    ssh, root, identity = values["ssh"], values["root"], values["identity_file"]
    if name == LOCAL and ssh is not None:
        raise _wrong(where, f"{prefix}.ssh", "local is this machine, which needs no ssh", "give that host another name")
    if name != LOCAL:
        if ssh is None:
            raise _wrong(where, f"{prefix}.ssh", "it is missing", f'add ssh = "user@address:port" below [{prefix}]')
        try:
            parse_ssh(ssh)
        except ValueError as error:
            raise _wrong(where, f"{prefix}.ssh", str(error), f"correct {ssh!r}") from error
        if root is not None and not re.match(r"/|~(/|$)", root):
            raise _wrong(where, f"{prefix}.root", "it must begin with / or ~/", f"correct {root!r}")
    if (values["registry_user"] is None) != (values["registry_secret"] is None):
        given, lacks = sorted(("registry_user", "registry_secret"), key=lambda key: values[key] is None)
        raise _wrong(where, f"{prefix}.{given}", f"{lacks} is missing", "set both, or neither")
    default_root = str(home / "local") if name == LOCAL else DEFAULT_ROOT
    return Host(
        name=name,
        ssh=ssh,
        root=str(home / Path(root).expanduser())
        if root and name == LOCAL
        else (root or default_root).rstrip("/") or "/",
        executor=cast(ExecutorName, values["executor"] or ("venv" if name == LOCAL else "auto")),
        price_per_hour=None if values["price_per_hour"] is None else float(values["price_per_hour"]),
        currency=values["currency"] or "CNY",
        release_command=values["release_command"],
        gpus=values["gpus"],
        identity_file=home / _expanded(identity) if identity else None,
        python=values["python"],
        image=values["image"],
        registry=values["registry"],
        registry_user=values["registry_user"],
        registry_secret=values["registry_secret"],
        secrets=secret_names if own_secrets is None else own_secrets,
    )


_NUMBER = (int, float)
_KEYS: dict[str, type | tuple[type, ...]] = {
    "ssh": str,
    "root": str,
    "executor": str,
    "price_per_hour": _NUMBER,
    "currency": str,
    "release_command": str,
    "gpus": int,
    "identity_file": str,
    "python": str,
    "image": str,
    "registry": str,
    "registry_user": str,
    "registry_secret": str,
}
_EXECUTORS = get_args(ExecutorName)
_RULES: dict[str, tuple[Callable[[Any], object], str]] = {
    "executor": (lambda value: value in _EXECUTORS, f"it must be one of {', '.join(_EXECUTORS)}"),
    "price_per_hour": (lambda value: 0 <= value < float("inf"), "it must be a price, 0 or more"),
    "gpus": (lambda value: value >= 0, "it must be 0 or more"),
    "root": (lambda value: value and printable(value) == value and "\n" not in value, "it must be a plain path"),
    "registry": (REGISTRY.fullmatch, "it must look like name:port/folder, in small letters and without https://"),
    "registry_user": (lambda value: re.fullmatch(r"[^\s:]+", value), "it must be a name without spaces and colons"),
    "registry_secret": (secrets.NAME.fullmatch, "it must be the name of a secret"),
    "currency": (lambda value: re.fullmatch(r"[A-Z]{3}", value), "it must be a code of three letters such as CNY"),
}


def _typed(table: Mapping[str, Any], key: str, kind: type | tuple[type, ...], *, where: str, prefix: str) -> Any:
    value = table.get(key)
    if key not in table or (isinstance(value, kind) and not isinstance(value, bool)):
        return value
    full = f"{prefix}.{key}" if prefix else key
    wanted = "a number" if kind == _NUMBER else {str: "text", int: "a whole number", dict: "a table"}[cast(type, kind)]
    raise _wrong(where, full, f"it must be {wanted}, not {_kind(value)}", f"correct {key} = {value!r}")


def _secrets(table: Mapping[str, Any], *, where: str, prefix: str) -> tuple[str, ...] | None:
    names = table.get("secrets")
    if names is None or (
        isinstance(names, list) and all(isinstance(n, str) and secrets.NAME.fullmatch(n) for n in names)
    ):
        return None if names is None else tuple(names)
    key = f"{prefix}.secrets" if prefix else "secrets"  # what stands there is not shown: it may be the value itself
    raise _wrong(where, key, "it must be a list of names of variables", f'write secrets = ["{secrets.WANDB}"]')


def _known_keys(table: Mapping[str, Any], known: tuple[str, ...], *, where: str, prefix: str) -> None:
    for key in table:
        if key not in known:
            full = f"{prefix}.{key}" if prefix else key
            remedy = f"use one of: {', '.join(known)}"
            raise _wrong(where, full, f"there is no such key{_nearest(key, known)}", remedy)


def _wrong(where: str, key: str, why: str, remedy: str) -> LaunchError:
    return LaunchError(f"{where}: {key} cannot be used", why=why, remedy=remedy, code=Exit.INVALID)
