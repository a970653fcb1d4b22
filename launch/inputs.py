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
from launch.facts import HostFacts
from launch.transport import Transport
from launch.voice import Voice
from minimind.catalog import CATALOG, TOKENIZER_FILES, StageInfo, weights_file
from minimind.durable import sha256_file

DEFAULT_HIDDEN_SIZE = 512
DEFAULT_LORA_NAME = "lora_identity"

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
class Places:
    """Where to look. ``out`` is the save_dir on the host; ``in_place`` when the host can read the laptop's files."""

    facts: HostFacts
    host: str
    home: Path
    cwd: Path
    out: str
    in_place: bool


@dataclass(frozen=True, kw_only=True)
class Want:
    """One file, or one folder with the files ``names``, that a flag tells the trainer to read."""

    flag: str
    what: str
    laptop: tuple[Path, ...]
    host: tuple[str, ...]
    remedy: str
    named_by_user: bool = False
    target: str | None = None
    names: tuple[str, ...] = ("",)
    rewrite: bool = True
    copy_always: bool = False


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


def wants(info: StageInfo, flags: Sequence[str], places: Places) -> list[Want]:
    """What the stage will read, by its flags and the catalog's defaults. Looks at no disk."""
    weight = trainer_flags.value_of(flags, "from_weight")
    found = [_data(info, flags, places)]
    if info.name == "tokenizer":
        return found
    if weight is None:
        weight = info.starts_from
    if weight and weight != "none":
        found.append(_weights("from_weight", weight, "the weights that it starts from", flags, places))
    adapter = trainer_flags.value_of(flags, "from_lora")
    if adapter and adapter != "none":
        named = adapter if _is_path(adapter) else f"lora/{adapter}"
        found.append(_weights("from_lora", named, "the adapter that it starts from", flags, places))
    return [*found, _tokenizer(flags, places)]


def _is_path(value: str) -> bool:
    return "/" in value or value.endswith(".pth")


def _on_host(value: str, places: Places) -> str:
    home = places.facts.home
    path = home + value[1:] if value.startswith("~/") else value
    return str(PurePosixPath(places.facts.root) / path)


def _on_laptop(value: str, places: Places) -> Path:
    try:
        return places.cwd / Path(value).expanduser()
    except RuntimeError:  # ~nobody
        return places.cwd / value


def _named(flag: str, value: str, what: str, places: Places, *, folder: str, remedy: str) -> Want:
    bare = "/" not in value
    return Want(
        flag=flag,
        what=what,
        laptop=(_on_laptop(value, places), *((places.home / folder / value,) if bare else ())),
        host=(_on_host(value, places), *((f"{places.facts.root}/{folder}/{value}",) if bare else ())),
        named_by_user=True,
        remedy=remedy,
    )


def _data(info: StageInfo, flags: Sequence[str], places: Places) -> Want:
    if value := trainer_flags.value_of(flags, "data_path"):
        return _named("data_path", value, "its data", places, folder="dataset", remedy="correct that path")
    lora_name = trainer_flags.value_of(flags, "lora_name") or DEFAULT_LORA_NAME
    name = info.default_data.format(lora_name=lora_name)
    target = f"{places.facts.root}/dataset/{name}"
    return Want(
        flag="data_path",
        what="its data",
        laptop=(places.home / "dataset" / name,),
        host=(target,),
        target=target,
        remedy=f"put {name} into {places.home / 'dataset'}, or name a file with --data FILE",
    )


def _weights(flag: str, value: str, what: str, flags: Sequence[str], places: Places) -> Want:
    if _is_path(value) and not value.startswith("lora/"):
        return _named(flag, value, what, places, folder="out", remedy="correct that path")
    hidden = trainer_flags.value_of(flags, "hidden_size") or ""
    name = weights_file(
        value,
        hidden_size=int(hidden) if hidden.isdecimal() else DEFAULT_HIDDEN_SIZE,
        use_moe=trainer_flags.is_on(flags, "use_moe"),
    )
    writers = [stage for stage, info in CATALOG.items() if info.writes == value]
    train = f"train it first with `launch run {writers[0]} --host {places.host}`, or " if writers else ""
    return Want(
        flag=flag,
        what=what,
        laptop=(places.home / "out" / name,),
        host=(f"{places.out}/{name}",),
        target=f"{places.out}/{name}",
        remedy=f"{train}put {name} into {places.home / 'out'}",
        rewrite=flag == "from_lora",
        copy_always=True,
    )


def _tokenizer(flags: Sequence[str], places: Places) -> Want:
    if value := trainer_flags.value_of(flags, "tokenizer"):
        remedy = f"name a folder with {' and '.join(TOKENIZER_FILES)}"
        named = _named("tokenizer", value, "its tokenizer", places, folder="out", remedy=remedy)
        return replace(named, names=TOKENIZER_FILES)
    target = f"{places.out}/tokenizer"
    return Want(
        flag="tokenizer",
        what="its tokenizer",
        laptop=(places.home / "out" / "tokenizer",),
        host=(target,),
        target=target,
        names=TOKENIZER_FILES,
        remedy=f"train one first with `launch run tokenizer --host {places.host}`, or give --tokenizer FOLDER",
        copy_always=True,
    )


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
