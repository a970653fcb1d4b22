"""What moves, and what it is called on the other host. Looks at no host."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import posixpath
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from launch import flags
from launch.errors import Exit, LaunchError, printable
from launch.executors import Environment
from minimind.catalog import CATALOG, PATH_FLAGS
from minimind.durable import to_json
from minimind.rundir import RunDir, RunError, RunSpec

STAYS = re.compile(r"runs/[^/]+/(?:handle\.json|beat\.json|stop|lock/.*)")
"""What speaks of a process of the host that it is on."""
MOVED = RunDir("").moved.name


@dataclass(frozen=True, kw_only=True)
class Item:
    """One name on the target and its content: a file here, or ``data``. ``shared``: may be one file with others."""

    target: str
    sha256: str
    length_bytes: int
    local: Path | None = None
    data: bytes = b""
    mode: str = "600"
    shared: bool = False

    def content(self) -> bytes:
        """All of it, for what is small."""
        return self.data if self.local is None else self.local.read_bytes()


@dataclass(frozen=True, kw_only=True)
class Read:
    """A file that a run reads, by its absolute path on the source and on the target."""

    source: str
    target: str


@dataclass(frozen=True, kw_only=True)
class Rebased:
    """A run's spec as it has to be on the target, and what it reads besides out/."""

    spec: RunSpec
    reads: tuple[Read, ...]


def spec_of(text: bytes, run_id: str) -> RunSpec:
    """Parse a run's spec.json, which has to be written anew for the target.

    Raises:
        LaunchError: INVALID.
    """
    try:
        spec = RunSpec.from_json(text)
        to_json(json.loads(text))  # moved.json keeps all of it
    except RunError as error:
        raise _unsound(run_id, f"its spec.json is none: {error.why}") from error
    except ValueError as error:
        raise _unsound(run_id, f"its spec.json cannot be written anew: {error}") from error
    if spec.run_id != run_id:
        raise _unsound(run_id, f"its spec.json is that of {spec.run_id}")
    return sound(spec)


def _unsound(run_id: str, why: str = "its spec.json does not say what launch writes there") -> LaunchError:
    return LaunchError(
        f"{run_id} cannot be moved",
        why=why,
        remedy=f"move the folder of {run_id} out of runs/ on its host, then run the same command again",
        code=Exit.INVALID,
    )


def sound(spec: RunSpec) -> RunSpec:
    """The spec, if it is one that the trainers could have been given; a host may have written anything there.

    Raises:
        LaunchError: INVALID.
    """
    inputs, words, names = (
        value if isinstance(value, list) else [None] for value in (spec.inputs, spec.flags, spec.secret_names)
    )
    texts = [spec.name or "", spec.executor, spec.created_at, spec.created_by, *words, *names]
    texts += [*(item.get(key) for item in inputs if isinstance(item, dict) for key in ("path", "sha256"))]
    if (
        not isinstance(spec.stage, str)
        or spec.stage not in CATALOG
        or not isinstance(spec.nproc, int)
        or not all(isinstance(item, dict) and isinstance(item.get("bytes"), int) for item in inputs)
        or not all(isinstance(text, str) and "\n" not in text and printable(text) == text for text in texts)
    ):
        raise _unsound(spec.run_id)
    return spec


def rebase(spec: RunSpec, source_root: str, target_root: str) -> Rebased:
    """Rewrite a spec's paths: below the source's root to below the target's, what lies elsewhere to ``inputs/``.

    Executor and environment are still those of the source: :func:`at_home_on`.
    """
    sound(spec)
    paths = [posixpath.normpath(item["path"]) for item in spec.inputs]  # no way out by ..
    files = {path: str(item["sha256"]) for path, item in zip(paths, spec.inputs, strict=True)}
    rules = [(source_root, target_root)]
    for name in ("save_dir", "out_dir", *PATH_FLAGS):
        value = _path(flags.value_of(spec.flags, name))
        if value.startswith("/") and _moved(value, rules) is None:
            within = [digest for path, digest in files.items() if path == value or path.startswith(f"{value}/")]
            is_out = name in ("save_dir", "out_dir")
            rules.append((value, f"{target_root}/out" if is_out else _input(target_root, value, within)))
    for path, digest in files.items():
        if _moved(path, rules) is None:
            rules.append((path, _input(target_root, path, [digest])))
    words: Sequence[str] = spec.flags
    for name in ("save_dir", "out_dir", *PATH_FLAGS):
        value = _path(flags.value_of(words, name))
        if value.startswith("/"):
            words = flags.with_value(words, name, _moved(value, rules) or value)
    inputs = [{**item, "path": _moved(path, rules) or path} for path, item in zip(paths, spec.inputs, strict=True)]
    reads = {
        path: Read(source=path, target=str(item["path"]))
        for path, item in zip(paths, inputs, strict=True)
        if not path.startswith(f"{source_root}/out/")
    }
    return Rebased(spec=dataclasses.replace(spec, flags=list(words), inputs=inputs), reads=tuple(reads.values()))


def at_home_on(
    spec: RunSpec, *, executor: str, environment: Environment, commit: str | None, dirty_hash: str | None
) -> RunSpec:
    """The spec with the executor, environment and code of the target."""
    return dataclasses.replace(
        spec,
        executor=executor,
        image_digest=environment.image_id,
        lock_hash=environment.lock_hash,
        code_hash=environment.code_hash,
        commit=commit,
        dirty_hash=dirty_hash,
    )


def _path(value: str | None) -> str:
    return posixpath.normpath(value) if value else ""


def _moved(path: str, rules: Iterable[tuple[str, str]]) -> str | None:
    for old, new in rules:
        if path == old or path.startswith(f"{old}/"):
            return new + path[len(old) :]
    return None


def _input(target_root: str, path: str, digests: Sequence[str]) -> str:
    digest = digests[0] if len(digests) == 1 else hashlib.sha256("".join(digests or [path]).encode()).hexdigest()
    return f"{target_root}/inputs/{digest[:12]}/{PurePosixPath(path).name}"


def of_home(files: Iterable[Mapping[str, Any]], home: Path, target_root: str, moved: Iterable[str]) -> list[Item]:
    """out/ and the moved runs, from the copy at home; a moved run's spec.json is not among them."""
    runs = tuple(f"runs/{run_id}/" for run_id in moved)
    found = []
    for file in files:
        path = str(file["path"])
        if not path.startswith(("out/", *runs)) or STAYS.fullmatch(path):
            continue
        parts = path.split("/")
        if parts[0] == "runs" and parts[2:] in (["spec.json"], [MOVED]):
            continue
        found.append(
            Item(
                target=f"{target_root}/{path}",
                sha256=str(file["sha256"]),
                length_bytes=int(file["bytes"]),
                local=home / path,
                shared=parts[0] == "out" or parts[2:3] == ["export"],
            )
        )
    return found


def written(target: str, data: bytes, *, mode: str = "600") -> Item:
    """A file that is made for the target."""
    return Item(target=target, sha256=hashlib.sha256(data).hexdigest(), length_bytes=len(data), data=data, mode=mode)


def history(before: bytes, *, source: str, source_root: str, at_utc: str, spec: bytes) -> bytes:
    """moved.json with one more move: from where, when, and the spec as it was there."""
    try:
        moves = json.loads(before)["moves"] if before else []
    except (ValueError, KeyError, TypeError):
        moves = []
    told = {"from": source, "root": source_root, "at": at_utc, "spec": json.loads(spec)}
    return to_json({"moves": [*moves, told]})
