"""Data whose token counts follow a stated distribution.

One word of the vocabulary is one token, so lengths are exact; they are log-normal.
"""

import json
import pathlib

import numpy as np
import tokenizers
import torch

from minimind.config import ModelConfig
from minimind.model import MiniMind
from minimind.tokenizer import BOS, CHAT_TEMPLATE, EOS, PAD

VOCABULARY = 6400
FRAME = ["system", "user", "assistant", "You", "are", "a", "helpful", "\n"]
HEADERS = 19
"""Tokens that the chat template puts around one question and one answer."""


def tokenizer(folder: pathlib.Path) -> pathlib.Path:
    """A tokenizer folder in which every word is one token."""
    words = [PAD, BOS, EOS, *FRAME]
    words += [f"w{n}" for n in range(VOCABULARY - len(words))]
    backend = tokenizers.Tokenizer(
        tokenizers.models.WordLevel({word: n for n, word in enumerate(words)}, unk_token=PAD)
    )
    backend.add_special_tokens([PAD, BOS, EOS])
    split = tokenizers.pre_tokenizers.Split
    backend.pre_tokenizer = tokenizers.pre_tokenizers.Sequence([split("\n", "isolated"), split(" ", "removed")])
    folder.mkdir(parents=True)
    backend.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps({"chat_template": CHAT_TEMPLATE}))
    return folder


def lengths(count: int, median: float, sigma: float, *, most: int, seed: int) -> np.ndarray:
    """Token counts, log-normal, from 8 to ``most``."""
    drawn = np.random.default_rng(seed).lognormal(np.log(median), sigma, count)
    return np.clip(drawn.astype(int), 8, most)


class Writer:
    """Lines of random words with the lengths asked for."""

    def __init__(self, seed: int) -> None:
        self.rng = np.random.default_rng(seed)

    def words(self, count: int) -> str:
        ranks = self.rng.zipf(1.2, count) % (VOCABULARY - 3 - len(FRAME))
        return " ".join(f"w{rank}" for rank in ranks)

    def turns(self, tokens: int) -> list[dict[str, str]]:
        asked = max(1, (tokens - HEADERS) // 4)
        answered = max(1, tokens - HEADERS - asked)
        return [
            {"role": "user", "content": self.words(asked)},
            {"role": "assistant", "content": self.words(answered)},
        ]


def write(path: pathlib.Path, kind: str, tokens: np.ndarray, *, seed: int = 1) -> pathlib.Path:
    """A JSONL file of texts, conversations or pairs with these token counts (a pair: of each side)."""
    writer = Writer(seed)
    lines = []
    for count in tokens:
        if kind == "text":
            lines.append({"text": writer.words(int(count))})
        elif kind == "chat":
            lines.append({"conversations": writer.turns(int(count))})
        else:
            lines.append({"chosen": writer.turns(int(count)), "rejected": writer.turns(int(count))})
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def weights(path: pathlib.Path, *, hidden_size: int, layers: int, arch: str = "minimind2") -> pathlib.Path:
    """Random fp16 weights under their usual name."""
    torch.manual_seed(1)
    config = ModelConfig.for_arch(arch, hidden_size=hidden_size, num_hidden_layers=layers, vocab_size=VOCABULARY)
    model = MiniMind(config)
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save({name: value.half() for name, value in model.state_dict().items()}, path)
    return path


def adapter(path: pathlib.Path, base: pathlib.Path, *, rank: int = 8) -> pathlib.Path:
    """A random adapter for the square linears of a model."""
    state = {}
    for name, value in torch.load(base, weights_only=True).items():
        if value.dim() == 2 and value.shape[0] == value.shape[1] and "self_attn" in name:
            stem = name.removesuffix(".weight")
            state[f"{stem}.lora.A.weight"] = torch.randn(rank, value.shape[1]) * 0.02
            state[f"{stem}.lora.B.weight"] = torch.randn(value.shape[0], rank) * 0.02
    torch.save(state, path)
    return path
