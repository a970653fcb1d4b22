"""Whether exported weights compute what the source computes: logits on real text, by us and by transformers."""

from __future__ import annotations

import importlib
import importlib.util
import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from minimind.model import MiniMind
from minimind.rundir import Reason, RunError
from minimind.tokenizer import Tokenizer

TEXTS = (
    "春眠不觉晓，处处闻啼鸟。夜来风雨声，花落知多少。",
    "The quick brown fox jumps over the lazy dog; 12 + 30 = 42.",
    "def add(a, b):\n    return a + b  # 加法\n",
)
LONGEST = 256
EXACT = 1e-5
ROUNDED = {"float16": 1e-2, "bfloat16": 6e-2, "float32": EXACT}
"""Largest difference of logits, as a share of the largest logit (or of 1), where numbers had to be rounded."""


def token_ids(words: Tokenizer) -> Tensor:
    """(1, T) ids of a conversation in the model's own format, followed by plain text."""
    asked = [{"role": "user", "content": TEXTS[0]}]
    ids = words.encode(words.prompt(asked) + "\n".join(TEXTS))
    return torch.tensor([ids[:LONGEST]])


@torch.inference_mode()
def logits(model: MiniMind, ids: Tensor) -> Tensor:
    """(T, V) in fp32."""
    return model(ids[:, : model.config.max_position_embeddings])[0].float()


def failed(what: str, why: str) -> RunError:
    """The paragraph for an export that is not what its source is."""
    return RunError(
        f"{what} was not written: it does not compute what the source computes",
        why=why,
        remedy="try --dtype float32; if it says the same, report it with the versions of torch and transformers",
        reason=Reason.TRAINER_ERROR,
    )


def compare(found: Tensor, wanted: Tensor, *, dtype: str, lossless: bool, what: str) -> str:
    """Compare (T, V) logits: the largest difference if nothing was rounded, else the mean of each position's largest.

    (A rounded gate may send a token to another expert, so that a single position says little about rounding.)

    Returns:
        the difference in words.

    Raises:
        RunError: when it exceeds the tolerance.
    """
    scale = max(1.0, float(wanted.abs().max()))
    by_position = (found - wanted).abs().amax(-1) / scale  # (T,)
    difference = float(by_position.max() if lossless else by_position.mean())
    tolerance = EXACT if lossless else ROUNDED[dtype]
    if not difference <= tolerance:
        raise failed(what, f"logits differ by {difference:.1e} of the largest; {tolerance:g} is what {dtype} may cost")
    return f"{difference:.1e} off (up to {tolerance:g} is accepted for {'an exact copy' if lossless else dtype})"


def by_transformers(folder: Path, model: MiniMind, ids: Tensor, *, what: str) -> str:
    """Load the folder with transformers, where it is installed, and compare its logits with ours.

    Returns:
        what was found, in words.

    Raises:
        RunError: when transformers cannot read it, or computes something else.
    """
    if importlib.util.find_spec("transformers") is None:
        return "not installed here, so not asked"
    try:
        library: Any = importlib.import_module("transformers")
        name = huggingface_class(folder)
        if not hasattr(library, name):
            return f"version {library.__version__} has no {name}, so not asked"
        library.logging.set_verbosity_error()
        library.logging.disable_progress_bar()
    except Exception as error:  # an installation that is broken says nothing about the folder
        return f"not usable here ({type(error).__name__}), so not asked"
    try:
        theirs = library.AutoModelForCausalLM.from_pretrained(folder, local_files_only=True).float().eval()
        with torch.inference_mode():
            found = theirs(ids).logits[0]
    except Exception as error:
        raise failed(what, f"transformers {library.__version__} cannot use it: {error}") from error
    ours = logits(model, ids)
    difference = float((found - ours).abs().max()) / max(1.0, float(ours.abs().max()))
    if not difference <= 10 * EXACT:
        raise failed(what, f"transformers {library.__version__} computes logits that differ by {difference:.1e}")
    return f"version {library.__version__} agrees to {difference:.1e}"


def huggingface_class(folder: Path) -> str:
    """The class that config.json names."""
    return str(json.loads((folder / "config.json").read_bytes())["architectures"][0])
