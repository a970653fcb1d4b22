"""What every use of trained weights begins with: find them, add adapters, see that the tokenizer is theirs."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from minimind import checkpoint, lora, tokenizer
from minimind.config import UsageError
from minimind.durable import sha256_file
from minimind.huggingface import is_folder
from minimind.model import MiniMind
from minimind.weights import find_weights, refuse_other_tokenizer


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
class Opened:
    """A model ready to use, with the tokenizer that fits it and where both came from."""

    model: MiniMind
    words: tokenizer.Tokenizer
    weights: Path
    adapters: tuple[Path, ...]


def tell(text: str) -> None:
    """Say something beside the output, on stderr."""
    print(text, file=sys.stderr, flush=True)


def opened(config: WeightsConfig, *, verb: str, device: str = "cpu", say: Callable[[str], None] = tell) -> Opened:
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
