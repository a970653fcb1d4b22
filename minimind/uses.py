"""What every use of trained weights begins with: find them, add adapters, see that the tokenizer is theirs."""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, TypeVar

import torch

from minimind import checkpoint, lora, tokenizer
from minimind.config import UsageError
from minimind.dialogue import Speaker, speaker
from minimind.durable import sha256_file
from minimind.flags import Parser, add_fields
from minimind.huggingface import is_folder
from minimind.model import MiniMind
from minimind.weights import find_weights, refuse_other_tokenizer, sidecar_of

LIMITS: dict[str, tuple[float, float]] = {
    "temperature": (0, 100),
    "top_p": (0, 1),
    "max_new_tokens": (1, 2**31 - 1),
    "max_seq_len": (2, 2**31 - 1),
    "history": (0, 2**31 - 1),
    "seed": (0, 2**63 - 1),
    "port": (0, 65535),
    "queue": (0, 10_000),
    "rows": (1, 256),
    "max_body_bytes": (1024, 2**31 - 1),
    "drain_s": (0, 3600),
}
"""What the options of chat, eval and serve may be, ends included."""


@dataclass(frozen=True, kw_only=True)
class WeightsConfig:
    """Flags that say which weights are used."""

    from_weight: Annotated[
        str | None, "weights: a file, a name in save_dir, or a Hugging Face folder; their shape is found from them"
    ] = None
    save_dir: Annotated[Path, "where names of weights are looked for"] = Path("out")
    from_lora: Annotated[
        tuple[str, ...],
        "adapters on top, added up: files or names in save_dir, each with a strength if wanted (a.pth:0.5)",
    ] = ()
    tokenizer: Annotated[Path | None, "folder with tokenizer.json; default: tokenizer/ beside the weights"] = None
    any_tokenizer: Annotated[bool, "go on although the weights were trained with another tokenizer"] = False
    yarn: Annotated[bool, "stretch the positions for texts longer than those trained on (YaRN, factor 16)"] = False


@dataclass(frozen=True, kw_only=True)
class SpokenConfig(WeightsConfig):
    """Flags of uses that make the weights speak, and where they compute."""

    raw: Annotated[
        bool | None, "1 continues plain text, 0 uses the chat template; default: what the weights are (pretrain: 1)"
    ] = None
    think: Annotated[bool, "let the template open thoughts before the answer, where it can (minimind3)"] = False
    device: Annotated[str, "auto, cpu, cuda or cuda:N"] = "auto"


@dataclass(frozen=True, kw_only=True)
class Opened:
    """A model ready to use, with the tokenizer that fits it and where both came from."""

    model: MiniMind
    words: tokenizer.Tokenizer
    weights: Path
    adapters: tuple[Path, ...]


def tell(text: str) -> None:
    """Say something beside the output, on stderr."""
    print(text, file=sys.stderr, flush=True)


Config = TypeVar("Config", bound=WeightsConfig)


def parsed(use: str, config: type[Config], argv: Sequence[str]) -> Config:
    """A use's config from its command line, every value checked.

    Raises:
        UsageError: for a flag that does not exist, a value that cannot be, a device that is not here, no weights.
    """
    parser = Parser(prog=f"python -m minimind {use}", description=config.__doc__, allow_abbrev=False)
    add_fields(parser, config, {})
    found = config(**vars(parser.parse_args(list(argv), argparse.Namespace())))
    for name, (least, most) in LIMITS.items():
        value = getattr(found, name, None)
        if value is not None and not least <= value <= most:  # a NaN is not between anything
            raise UsageError(
                f"--{name} {value} is not possible",
                why=f"it must be between {least} and {most}",
                remedy=f"give --{name} {min(max(value, least), most) if math.isfinite(value) else least}",
            )
    for name in ("prompt", "system"):
        value = getattr(found, name, None)
        if value is not None and any(0xD800 <= ord(character) < 0xE000 for character in value):
            raise UsageError(
                f"--{name} is not UTF-8",
                why="it has bytes that are no characters",
                remedy="set the terminal to UTF-8, or read the text from standard input",
            )
    if found.from_weight is None:
        raise UsageError(
            f"{use} needs weights",
            why="no --from_weight was given",
            remedy=f"give a file or a name in save_dir: python -m minimind {use} --from_weight out/full_sft_512.pth",
        )
    return found


def device_of(name: str) -> torch.device:
    """Where to compute.

    Raises:
        UsageError: when there is no such device here.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    kind, _, index = name.partition(":")
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if kind not in ("cpu", "cuda") or (index and not index.isdecimal()):
        why = "it must be auto, cpu, cuda or cuda:N"
    elif kind == "cuda" and int(index or 0) >= count:
        why = f"this machine has {count or 'no'} CUDA device{'s'[: count != 1]} that torch can use"
    else:
        return torch.device(name)
    raise UsageError(f"--device {name} is not possible", why=why, remedy="leave --device away, or give --device cpu")


def spoken(config: SpokenConfig, *, verb: str) -> tuple[MiniMind, Speaker]:
    """The model with its adapters on its device, and how it is spoken to; which template that is goes to stderr.

    Raises:
        RunError: when weights, adapters or tokenizer are missing or do not fit one another.
    """
    use = opened(config, verb=verb, device=device_of(config.device))
    found, said = speaker(
        use.words,
        use.model.config,
        use.weights,
        sidecar_of(use.weights),
        raw=config.raw,
        think=config.think,
        adapted=bool(use.adapters),
    )
    tell(said)
    return use.model, found


def opened(
    config: WeightsConfig, *, verb: str, device: str | torch.device = "cpu", say: Callable[[str], None] = tell
) -> Opened:
    """Load weights, adapters and tokenizer.

    Args:
        config: which.
        verb: the use, for messages.
        device: where the model goes.
        say: is told what the adapters are, and when they were trained on other weights.

    Raises:
        UsageError: when no weights are named.
        RunError: when anything is missing, damaged or does not fit.
    """
    if config.from_weight is None:
        raise UsageError(
            f"{verb} needs weights",
            why="no --from_weight was given",
            remedy=f"python -m minimind {verb} --from_weight out/full_sft_512.pth",
        )
    weights = find_weights(config.from_weight, config.save_dir)
    model = checkpoint.load_model(weights, device, yarn=config.yarn)
    adapters = [lora.find(name, config.save_dir, hidden_size=model.config.hidden_size) for name in config.from_lora]
    words = fitting_tokenizer(
        config.tokenizer,
        weights,
        model,
        any_tokenizer=config.any_tokenizer,
        adapters=tuple(path for path, _ in adapters),
    )
    for path, strength in adapters:
        lora.apply(model, path, strength=strength, say=say)
        base = lora.base_of(path)
        if base and weights.is_file() and base != sha256_file(weights):
            say(f"warning: {path} was trained on other weights ({base[:8]}…) than {weights}; its shapes fit")
    return Opened(model=model.eval(), words=words, weights=weights, adapters=tuple(path for path, _ in adapters))


def fitting_tokenizer(
    folder: Path | None,
    weights: Path,
    model: MiniMind,
    *,
    any_tokenizer: bool = False,
    adapters: tuple[Path, ...] = (),
) -> tokenizer.Tokenizer:
    """The tokenizer given, else the one in or beside the weights; checked against what they were trained with.

    Raises:
        RunError: when there is none, when its vocabulary is larger than the model's, or when it is another one.
    """
    beside = weights if is_folder(weights) else weights.parent / "tokenizer"
    words = tokenizer.load(folder or beside)
    for file in (weights, *adapters):
        refuse_other_tokenizer(words, file, vocab_size=model.config.vocab_size, any_tokenizer=any_tokenizer)
    return words
