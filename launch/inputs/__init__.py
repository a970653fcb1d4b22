"""What a stage reads: found on the host or on the laptop, brought to the host, and written into the run's spec.

What the host has under a default name wins; a path that the user names is looked for on the laptop first.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Any

from launch import flags as trainer_flags
from launch.errors import Exit, LaunchError
from launch.inputs.wants import Places, Want, wants
from launch.transport import Transport
from launch.voice import Voice
from minimind.catalog import StageInfo
from minimind.durable import sha256_file

__all__ = ["Found", "Inputs", "Places", "Want", "push", "resolve", "wants"]

SURVEY = r"""
hash() { if command -v sha256sum >/dev/null 2>&1; then sha256sum; else shasum -a 256; fi; }
for path in "$@"; do
  if [ -f "$path" ] && [ -r "$path" ]; then
    printf 'f %s %s\n' "$(wc -c <"$path" | tr -d ' ')" "$(hash <"$path" | cut -d' ' -f1)"
  else
    echo -
  fi
done
"""


@dataclass(frozen=True, kw_only=True)
class Found:
    """A file that the run will read; ``source`` is set when it has to be sent from the laptop first."""

    path: str
    sha256: str
    bytes: int
    source: Path | None = None


@dataclass(frozen=True, kw_only=True)
class Inputs:
    """The trainer's flags as they must be on the host, and the files behind them."""

    flags: tuple[str, ...]
    files: tuple[Found, ...]

    @property
    def pushes(self) -> tuple[Found, ...]:
        """What the host still lacks."""
        return tuple(file for file in self.files if file.source)

    def records(self) -> list[dict[str, Any]]:
        """As spec.json has them."""
        return [{"path": file.path, "sha256": file.sha256, "bytes": file.bytes} for file in self.files]


def resolve(info: StageInfo, flags: Sequence[str], places: Places, transport: Transport) -> Inputs:
    """Find everything the stage reads, in one question to the host; changes nothing.

    Raises:
        LaunchError: INVALID naming both places looked at, when something is on neither side.
    """
    needed = wants(info, flags, places)
    local, hashes = [_laptop_files(want) for want in needed], _Hashes()
    inputs_folder = f"{places.facts.root}/inputs"
    candidates: list[list[str]] = []
    for want, files in zip(needed, local, strict=True):
        copies = [_target(want, files, inputs_folder, hashes)] if files and want.named_by_user else []
        candidates.append([*copies, *want.host])
    paths = [
        _join(path, n) for want, paths in zip(needed, candidates, strict=True) for path in paths for n in want.names
    ]
    there = _survey(transport, list(dict.fromkeys(paths)))
    words, found = list(flags), list[Found]()
    for want, files, paths in zip(needed, local, candidates, strict=True):
        value, chosen = _choose(want, files, paths, there, places, inputs_folder, hashes, stage=info.name)
        found += chosen
        if want.rewrite:
            words = trainer_flags.with_value(words, want.flag, value)
    return Inputs(flags=tuple(words), files=tuple(found))


class _Hashes(dict[Path, str]):
    """sha256 of laptop files, each computed once."""

    def __missing__(self, file: Path) -> str:
        self[file] = digest = sha256_file(file)
        return digest


def _laptop_files(want: Want) -> tuple[Path, list[Path]] | None:
    for base in want.laptop:
        files = [base / name if name else base for name in want.names]
        if all(file.is_file() for file in files):
            return base, files
    return None


def _target(want: Want, files: tuple[Path, list[Path]], inputs_folder: str, hashes: _Hashes) -> str:
    base, members = files
    if want.target:
        return want.target
    digests = [hashes[file] for file in members]
    digest = digests[0] if len(digests) == 1 else hashlib.sha256("".join(digests).encode()).hexdigest()
    return f"{inputs_folder}/{digest[:12]}/{base.resolve().name}"


def _choose(
    want: Want,
    files: tuple[Path, list[Path]] | None,
    paths: Sequence[str],
    there: Mapping[str, tuple[int, str]],
    places: Places,
    inputs_folder: str,
    hashes: _Hashes,
    *,
    stage: str,
) -> tuple[str, list[Found]]:
    on_host = next((path for path in paths if all(_join(path, name) in there for name in want.names)), None)
    use_laptop = files is not None and (want.named_by_user or on_host is None)
    if files is None or not use_laptop:
        if on_host is None:
            looked = [*(f"{places.host}:{path}" for path in want.host), *map(str, want.laptop)]
            raise LaunchError(
                f"{stage} lacks {want.what}: {PurePosixPath(want.host[0]).name}",
                why=f"neither side has it; looked at {', '.join(dict.fromkeys(looked))}",
                remedy=want.remedy,
                code=Exit.INVALID,
            )
        return on_host, [_there(_join(on_host, name), there) for name in want.names]
    base, members = files
    if places.in_place and not want.copy_always:
        return str(base.resolve()), [_measured(str(file.resolve()), file, hashes) for file in members]
    target = _target(want, files, inputs_folder, hashes)
    chosen = []
    for file, name in zip(members, want.names, strict=True):
        path = _join(target, name)
        ours = _measured(path, file, hashes)
        chosen.append(ours if there.get(path) == (ours.bytes, ours.sha256) else replace(ours, source=file))
        sidecar = file.with_suffix(".json")
        if file.suffix == ".pth" and chosen[-1].source and sidecar.is_file():
            beside = str(PurePosixPath(path).with_suffix(".json"))
            chosen.append(replace(_measured(beside, sidecar, hashes), source=sidecar))
    return target, chosen


def _join(path: str, name: str) -> str:
    return f"{path}/{name}" if name else path


def _there(path: str, there: Mapping[str, tuple[int, str]]) -> Found:
    return Found(path=path, bytes=there[path][0], sha256=there[path][1])


def _measured(path: str, file: Path, hashes: _Hashes) -> Found:
    return Found(path=path, sha256=hashes[file], bytes=file.stat().st_size)


def _survey(transport: Transport, paths: Sequence[str]) -> dict[str, tuple[int, str]]:
    lines = transport.read(["sh", "-c", SURVEY, "sh", *paths]).text.splitlines()
    found = {}
    for path, line in zip(paths, lines, strict=False):
        fields = line.split()
        if fields[0] == "f" and len(fields) == 3:
            found[path] = (int(fields[1]), fields[2])
    return found


def push(files: Sequence[Found], transport: Transport, voice: Voice) -> None:
    """Send what the host lacks; each file gets its name there only after its sha256 was checked there."""
    for file in files:
        if file.source:
            with voice.moving(f"{file.source.name} -> {transport.host.name}", file.bytes) as moved:
                transport.send(file.source, file.path, on_bytes=moved)
