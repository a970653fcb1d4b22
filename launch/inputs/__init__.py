"""What a stage reads: found on the host or on the laptop, brought to the host, and written into the run's spec.

What the host has under a default name wins; a path that the user names is looked for on the laptop first.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Any

from launch import flags as trainer_flags
from launch.errors import Exit, LaunchError
from launch.facts import HostFacts, There
from launch.inputs.wants import Places, Want, wants
from launch.transport import Transport
from launch.voice import Voice
from minimind.catalog import StageInfo
from minimind.durable import sha256_file

__all__ = ["Found", "Inputs", "Places", "Search", "Want", "push", "wants"]


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


class Search:
    """What a stage reads, looked for on the laptop; the host is asked about :attr:`questions`, then all is settled."""

    def __init__(self, info: StageInfo, flags: Sequence[str], places: Places) -> None:
        self._stage, self._flags, self._places = info.name, flags, places
        self._hashes = _Hashes()
        self._wants = [(want, _on_laptop(want)) for want in wants(info, flags, places)]

    @property
    def questions(self) -> list[str]:
        """The host's paths that matter; ``@/`` stands for its root."""
        return list(
            dict.fromkeys(
                _join(path, name)
                for want, ours in self._wants
                for path in self._candidates(want, ours)
                for name in want.names
            )
        )

    def settle(self, facts: HostFacts, there: Mapping[str, There], *, in_place: bool) -> Inputs:
        """Decide where each input comes from; ``in_place`` when the run can read the laptop's own files.

        Raises:
            LaunchError: INVALID naming both places looked at, when something is on neither side.
        """
        words, found = list(self._flags), list[Found]()
        for want, ours in self._wants:
            value, files = self._choose(want, ours, facts, there, in_place=in_place)
            found += files
            if want.rewrite:
                words = trainer_flags.with_value(words, want.flag, value)
        return Inputs(flags=tuple(words), files=tuple(found))

    def _candidates(self, want: Want, ours: Laptop | None) -> list[str]:
        return [*([self._target(want, ours)] if ours and want.named_by_user else []), *want.host]

    def _target(self, want: Want, ours: Laptop) -> str:
        if want.target:
            return want.target
        digests = [self._hashes[file] for file in ours.files]
        digest = digests[0] if len(digests) == 1 else hashlib.sha256("".join(digests).encode()).hexdigest()
        return f"@/inputs/{digest[:12]}/{ours.base.resolve().name}"

    def _choose(
        self, want: Want, ours: Laptop | None, facts: HostFacts, there: Mapping[str, There], *, in_place: bool
    ) -> tuple[str, list[Found]]:
        candidates = self._candidates(want, ours)
        on_host = next((path for path in candidates if _whole(path, want, there)), None)
        if ours and (want.named_by_user or on_host is None):
            if in_place and not want.copy_always:
                return str(ours.base.resolve()), [self._measured(str(file.resolve()), file) for file in ours.files]
            target = self._target(want, ours)
            return facts.expand(target), list(self._copies(want, ours, target, facts, there))
        if on_host is None:
            places = [f"{self._places.host}:{facts.expand(path)}" for path in want.host]
            raise LaunchError(
                f"{self._stage} lacks {want.what}: {PurePosixPath(want.host[0]).name}",
                why=f"neither side has it; looked at {', '.join(dict.fromkeys((*places, *map(str, want.laptop))))}",
                remedy=want.remedy,
                code=Exit.INVALID,
            )
        return facts.expand(on_host), [
            Found(path=facts.expand(path), bytes=there[path].bytes or 0, sha256=there[path].sha256 or "")
            for path in (_join(on_host, name) for name in want.names)
        ]

    def _copies(
        self, want: Want, ours: Laptop, target: str, facts: HostFacts, there: Mapping[str, There]
    ) -> Iterator[Found]:
        for file, name in zip(ours.files, want.names, strict=True):
            path = _join(target, name)
            copy = self._measured(facts.expand(path), file)
            if there.get(path) == There(bytes=copy.bytes, sha256=copy.sha256):
                yield copy
                continue
            yield replace(copy, source=file)
            sidecar = file.with_suffix(".json")
            if file.suffix == ".pth" and sidecar.is_file():
                beside = str(PurePosixPath(copy.path).with_suffix(".json"))
                yield replace(self._measured(beside, sidecar), source=sidecar)

    def _measured(self, path: str, file: Path) -> Found:
        return Found(path=path, sha256=self._hashes[file], bytes=file.stat().st_size)


@dataclass(frozen=True, kw_only=True)
class Laptop:
    """An input as it lies on the laptop: a file, or a folder and the files in it that matter."""

    base: Path
    files: tuple[Path, ...]


class _Hashes(dict[Path, str]):
    """sha256 of laptop files, each computed once."""

    def __missing__(self, file: Path) -> str:
        self[file] = digest = sha256_file(file)
        return digest


def _on_laptop(want: Want) -> Laptop | None:
    for base in want.laptop:
        files = tuple(base / name if name else base for name in want.names)
        if all(file.is_file() for file in files):
            return Laptop(base=base, files=files)
    return None


def _whole(path: str, want: Want, there: Mapping[str, There]) -> bool:
    return all((file := there.get(_join(path, name))) and file.sha256 for name in want.names)


def _join(path: str, name: str) -> str:
    return f"{path}/{name}" if name else path


def push(files: Sequence[Found], transport: Transport, voice: Voice) -> None:
    """Send what the host lacks; each file gets its name there only after its sha256 was checked there."""
    for file in files:
        if file.source:
            with voice.moving(f"{file.source.name} -> {transport.host.name}", file.bytes) as moved:
                transport.send(file.source, file.path, on_bytes=moved)
