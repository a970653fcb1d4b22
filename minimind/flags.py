"""The command line from the annotated fields of a config."""

from __future__ import annotations

import argparse
import dataclasses
import difflib
import functools
import math
import types
import typing
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from minimind import defaults
from minimind.catalog import PRESETS
from minimind.config import CONFIGS, GENERATIONS, LORA_TARGETS, ModelConfig, TrainConfig, UsageError

LARGEST_SEED = (1 << 63) - 1
ALIASES = {"save_dir": ("out_dir",), "yarn": ("inference_rope_scaling",)}


def parse_bool(text: str) -> bool:
    """``1/0``, ``true/false``, ``yes/no``: the original writes its switches both as flags and as 0/1."""
    if text.lower() in ("1", "true", "yes"):
        return True
    if text.lower() in ("0", "false", "no"):
        return False
    raise argparse.ArgumentTypeError(f"{text!r} is neither 0 nor 1")


class Parser(argparse.ArgumentParser):
    """argparse that suggests the nearest flag and raises instead of leaving."""

    def error(self, message: str) -> typing.NoReturn:
        """Raise what is wrong, with the nearest known flag."""
        known = [option for action in self._actions for option in action.option_strings]
        unknown = [word for word in message.split() if word.startswith("--")] if "unrecognized" in message else []
        near = [match for word in unknown for match in difflib.get_close_matches(word.split("=")[0], known, n=1)]
        raise UsageError(
            f"{self.prog} does not understand its flags",
            why=message,
            remedy=f"did you mean {', '.join(near)}?" if near else f"see {self.prog} --help",
        )


class _Several(argparse.Action):
    """A flag that may be given again, or once with a list between commas."""

    def __call__(self, parser: Any, namespace: Any, values: Any, option_string: str | None = None) -> None:
        """Add what is given to what was given before."""
        before = getattr(namespace, self.dest)
        setattr(namespace, self.dest, (*before, *(part for part in values.split(",") if part)))


def add_fields(parser: argparse.ArgumentParser, config: type[Any], overrides: dict[str, Any]) -> None:
    """One flag per field of a frozen dataclass: type, help and default come from the field."""
    hints = typing.get_type_hints(config, include_extras=True)
    for field in dataclasses.fields(config):
        kind, text = typing.get_args(hints[field.name])
        default = overrides.get(field.name, field.default)
        spellings = [field.name, *ALIASES.get(field.name, ())]
        flags = [f"--{s}" for name in spellings for s in dict.fromkeys((name, name.replace("_", "-")))]
        shown = f"{text} [default: {default}]" if default not in (None, ()) else text
        words: tuple[str, ...] = ()
        if typing.get_origin(kind) in (types.UnionType, typing.Union):  # the latter when a word is among them
            kind, *more = (arg for arg in typing.get_args(kind) if arg is not type(None))
            words = tuple(word for arg in more for word in typing.get_args(arg))
        options: dict[str, Any] = {"default": default, "help": shown, "dest": field.name}
        if typing.get_origin(kind) is tuple:
            parser.add_argument(*flags, action=_Several, metavar="A,B", **options)
        elif typing.get_origin(kind) is Literal:
            parser.add_argument(*flags, choices=typing.get_args(kind), **options)
        elif kind is bool:
            parser.add_argument(*flags, nargs="?", const=True, type=parse_bool, metavar="0|1", **options)
            negative = [flag.replace("--", "--no-", 1) for flag in flags]
            parser.add_argument(
                *negative, dest=field.name, action="store_false", default=default, help=argparse.SUPPRESS
            )
        else:
            convert = functools.partial(_not_empty, kind) if kind in (str, Path) else kind
            if words:
                convert = functools.partial(_word_or, words, kind)
            parser.add_argument(*flags, type=convert, metavar="|".join((kind.__name__.upper(), *words)), **options)


def _word_or(words: tuple[str, ...], kind: type[Any], text: str) -> Any:
    """One of the words as it is, else a value of the kind."""
    try:
        return text if text in words else kind(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is neither a number nor {' or '.join(words)}") from None


def _not_empty(kind: type[Any], text: str) -> Any:
    """A name or path; an empty one is a variable that was not set, and never means the default."""
    if not text.strip():
        raise argparse.ArgumentTypeError("it is empty: give a value, or leave the flag away for the default")
    return kind(text)


def parse(stage: str, argv: Sequence[str]) -> Any:
    """The stage's config from its command line.

    Raises:
        UsageError: for a flag that does not exist, does not parse, or has a value that no run can have.
    """
    config = CONFIGS[stage]
    parser = Parser(prog=f"python -m minimind {stage}", description=config.__doc__, allow_abbrev=False)
    arch = _asked(argv, "arch")
    sizes = _preset(arch if arch in GENERATIONS else "minimind2", _asked(argv, "preset"), stage)
    add_fields(parser, config, sizes)
    parsed = config(**vars(parser.parse_args(list(argv))))
    for name in ("epochs", "batch_size", "accumulation_steps", "save_interval", "log_interval", "keep_checkpoints"):
        _at_least(parsed, name, 1)
    _at_least(parsed, "max_seq_len", 2)
    _at_least(parsed, "hidden_size", 16)
    _at_least(parsed, "vocab_size", 259)  # every byte and the three special tokens
    for name in ("seed", "skip_bad_lines", "learning_rate", "grad_clip", "beta", "alpha", "dropout", "hang_timeout"):
        _at_least(parsed, name, 0)
    if getattr(parsed, "seed", 0) > LARGEST_SEED:
        raise UsageError("--seed is too large", why=f"the largest is {LARGEST_SEED}", remedy="give a smaller number")
    _at_least(parsed, "temperature", 0.01)
    for name in ("random_system", "drop_empty_think"):
        _at_least(parsed, name, 0)
        if getattr(parsed, name, 0) > 1:
            raise UsageError(
                f"--{name} {getattr(parsed, name)} is not possible",
                why="it is a share, so it lies between 0 and 1",
                remedy=f"give --{name} 0.2, for instance",
            )
    for name in ("max_steps", "max_tokens_per_batch", "lora_rank", "num_hidden_layers", "max_bad_steps"):
        _at_least(parsed, name, 1)
    rank = getattr(parsed, "lora_rank", None)
    if rank is not None and rank > parsed.hidden_size:
        raise UsageError(
            f"--lora_rank {rank} is not possible",
            why=f"an adapter is a narrow detour around a matrix of {parsed.hidden_size} x {parsed.hidden_size}",
            remedy=f"give --lora_rank {parsed.hidden_size} or less; 8 or 16 are usual",
        )
    _known_targets(parsed)
    if getattr(parsed, "dropout", 0.0) > 0.9:
        raise UsageError(
            f"--dropout {parsed.dropout} is not possible",
            why="it is the share that is dropped, and something must be left to learn from",
            remedy="give --dropout 0.9 or less; 0.1 is usual, the original trains with 0",
        )
    if isinstance(parsed, TrainConfig):  # whether the sizes fit one another, before anything is read
        ModelConfig.for_arch(
            parsed.arch, hidden_size=parsed.hidden_size, num_hidden_layers=parsed.num_hidden_layers, vocab_size=1
        )
    return parsed


def _known_targets(config: object) -> None:
    targets = getattr(config, "lora_targets", "all")
    strange = [name for name in targets.split(",") if name.strip() not in LORA_TARGETS]
    if strange and targets not in ("square", "all"):
        raise UsageError(
            f"--lora_targets {targets} is not possible",
            why=f"no block has a linear {strange[0].strip()!r}",
            remedy=f"give square, all, or some of {','.join(LORA_TARGETS)}",
        )


def _asked(argv: Sequence[str], name: str) -> str | None:
    """A flag that picks the table of defaults, so that it is read before the rest."""
    early = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    early.add_argument(f"--{name}", nargs="?")
    return early.parse_known_args(list(argv))[0].__dict__[name]


def _preset(arch: str, name: str | None, stage: str) -> dict[str, Any]:
    """The generation's defaults of a stage, with the sizes of a preset."""
    if name is None or stage == "tokenizer":
        return defaults.of_stage(arch, stage)
    if (arch, name) not in PRESETS:
        known = ", ".join(preset for generation, preset in PRESETS if generation == arch)
        raise UsageError(
            f"--preset {name} is not possible",
            why=f"{arch} has no such size",
            remedy=f"give one of {known}, or --hidden_size and --num_hidden_layers",
        )
    return {**defaults.of_stage(arch, stage), **dataclasses.asdict(PRESETS[arch, name])}


def _at_least(config: object, name: str, least: float) -> None:
    value = getattr(config, name, None)
    if value is not None and value != "auto" and not least <= value < math.inf:  # a NaN is not at least anything
        raise UsageError(
            f"--{name} {value} is not possible",
            why=f"it must be at least {least}",
            remedy=f"give --{name} {least} or more",
        )
