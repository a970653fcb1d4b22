"""The command line from the annotated fields of a config."""

from __future__ import annotations

import argparse
import dataclasses
import difflib
import math
import types
import typing
from collections.abc import Sequence
from typing import Any, Literal

from minimind.config import CONFIGS, GENERATIONS, ModelConfig, TrainConfig, UsageError, defaults

ALIASES = {"save_dir": ("out_dir",)}


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


def add_fields(parser: argparse.ArgumentParser, config: type[Any], overrides: dict[str, Any]) -> None:
    """One flag per field of a frozen dataclass: type, help and default come from the field."""
    hints = typing.get_type_hints(config, include_extras=True)
    for field in dataclasses.fields(config):
        kind, text = typing.get_args(hints[field.name])
        default = overrides.get(field.name, field.default)
        spellings = [field.name, *ALIASES.get(field.name, ())]
        flags = [f"--{s}" for name in spellings for s in dict.fromkeys((name, name.replace("_", "-")))]
        shown = f"{text} [default: {default}]" if default is not None else text
        if isinstance(kind, types.UnionType):
            kind = next(arg for arg in typing.get_args(kind) if arg is not type(None))
        options: dict[str, Any] = {"default": default, "help": shown, "dest": field.name}
        if typing.get_origin(kind) is Literal:
            parser.add_argument(*flags, choices=typing.get_args(kind), **options)
        elif kind is bool:
            parser.add_argument(*flags, nargs="?", const=True, type=parse_bool, metavar="0|1", **options)
            negative = [flag.replace("--", "--no-", 1) for flag in flags]
            parser.add_argument(
                *negative, dest=field.name, action="store_false", default=default, help=argparse.SUPPRESS
            )
        else:
            parser.add_argument(*flags, type=kind, metavar=kind.__name__.upper(), **options)


def parse(stage: str, argv: Sequence[str]) -> Any:
    """The stage's config from its command line.

    Raises:
        UsageError: for a flag that does not exist, does not parse, or has a value that no run can have.
    """
    config = CONFIGS[stage]
    parser = Parser(prog=f"python -m minimind {stage}", description=config.__doc__, allow_abbrev=False)
    add_fields(parser, config, defaults(_asked_arch(argv), stage))
    parsed = config(**vars(parser.parse_args(list(argv))))
    for name in ("epochs", "batch_size", "accumulation_steps", "save_interval", "log_interval", "keep_checkpoints"):
        _at_least(parsed, name, 1)
    _at_least(parsed, "max_seq_len", 2)
    _at_least(parsed, "hidden_size", 16)
    _at_least(parsed, "vocab_size", 259)  # every byte and the three special tokens
    for name in ("seed", "skip_bad_lines", "learning_rate", "grad_clip", "beta", "alpha", "dropout", "hang_timeout"):
        _at_least(parsed, name, 0)
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


def _asked_arch(argv: Sequence[str]) -> str:
    """``--arch`` picks the table of defaults, so it is read before the rest."""
    early = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    early.add_argument("--arch", default="minimind2")
    asked = str(early.parse_known_args(list(argv))[0].arch)
    return asked if asked in GENERATIONS else "minimind2"


def _at_least(config: object, name: str, least: float) -> None:
    value = getattr(config, name, None)
    if value is not None and not least <= value < math.inf:  # a NaN is not at least anything
        raise UsageError(
            f"--{name} {value} is not possible",
            why=f"it must be at least {least}",
            remedy=f"give --{name} {least} or more",
        )
