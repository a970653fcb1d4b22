"""Which files a stage reads, by its flags and the catalog's defaults, and where each may lie. Looks at no disk."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath

from launch import flags as trainer_flags
from launch.errors import Exit, LaunchError
from minimind.catalog import (
    CATALOG,
    DEFAULT_PRESET,
    PATH_FLAGS,
    PRESETS,
    TOKENIZER_FILES,
    StageInfo,
    weights_file,
)

DEFAULT_LORA_NAME = "lora_identity"
DEFAULT_TEACHER, DEFAULT_TEACHER_HIDDEN_SIZE = "full_sft", 768


@dataclass(frozen=True, kw_only=True)
class Places:
    """Where to look. ``out`` is the save_dir on the host, where ``@`` stands for its root until that is known."""

    host: str
    home: Path
    cwd: Path
    out: str = "@/out"


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


def wants(info: StageInfo, flags: Sequence[str], places: Places) -> list[Want]:
    """What the stage will read, by its flags and the catalog's defaults. Looks at no disk.

    Raises:
        LaunchError: USAGE when a path is given and empty.
    """
    for flag in (*PATH_FLAGS, "lora_name"):
        value = trainer_flags.value_of(flags, flag)
        if value is not None and not value.strip():
            raise LaunchError(
                f"--{flag} is empty",
                why="it stands without a value; an empty one never means the default",
                remedy=f"give --{flag} a value, or leave it away for the stage's default",
                code=Exit.USAGE,
            )
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
        found.append(_weights("from_lora", adapter, "the adapter that it starts from", flags, places))
    if info.name == "distillation":
        teacher = trainer_flags.value_of(flags, "teacher_weight") or DEFAULT_TEACHER
        found.append(_weights("teacher_weight", teacher, "its teacher's weights", flags, places))
    return [*found, _tokenizer(flags, places)]


def _on_host(value: str) -> str:
    return value if value.startswith("~/") else str(PurePosixPath("@") / value)


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
        host=(_on_host(value), *((f"@/{folder}/{value}",) if bare else ())),
        named_by_user=True,
        remedy=remedy,
    )


def _data(info: StageInfo, flags: Sequence[str], places: Places) -> Want:
    if value := trainer_flags.value_of(flags, "data_path"):
        return _named("data_path", value, "its data", places, folder="dataset", remedy="correct that path")
    lora_name = trainer_flags.value_of(flags, "lora_name") or DEFAULT_LORA_NAME
    name = info.default_data.format(lora_name=lora_name)
    target = f"@/dataset/{name}"
    return Want(
        flag="data_path",
        what="its data",
        laptop=(places.home / "dataset" / name,),
        host=(target,),
        target=target,
        remedy=f"put {name} into {places.home / 'dataset'}, or name a file with --data FILE",
    )


def _weights(flag: str, value: str, what: str, flags: Sequence[str], places: Places) -> Want:
    if "/" in value or value.endswith(".pth"):
        return _named(flag, value, what, places, folder="out", remedy="correct that path")
    hidden_size, use_moe = _teacher_size(flags) if flag == "teacher_weight" else _own_size(flags)
    stem = f"lora/{value}" if flag == "from_lora" else value
    name = weights_file(stem, hidden_size=hidden_size, use_moe=use_moe)
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


def _own_size(flags: Sequence[str]) -> tuple[int, bool]:
    """Width of the run's model, and whether it is a mixture of experts."""
    arch = trainer_flags.value_of(flags, "arch") or "minimind2"
    preset = trainer_flags.value_of(flags, "preset") or DEFAULT_PRESET.get(arch, "")
    sizes = PRESETS.get((arch, preset), PRESETS["minimind2", "small"])  # an unknown one the trainer refuses
    hidden = trainer_flags.value_of(flags, "hidden_size") or ""
    moe_said = any(trainer_flags.value_of(flags, name) is not None for name in ("use_moe", "no_use_moe"))
    return (
        int(hidden) if hidden.isdecimal() else sizes.hidden_size,
        trainer_flags.is_on(flags, "use_moe") if moe_said else sizes.use_moe,
    )


def _teacher_size(flags: Sequence[str]) -> tuple[int, bool]:
    """The same of a teacher that is given by name, as the trainer takes it."""
    hidden = trainer_flags.value_of(flags, "teacher_hidden_size") or ""
    return int(hidden) if hidden.isdecimal() else DEFAULT_TEACHER_HIDDEN_SIZE, False


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
