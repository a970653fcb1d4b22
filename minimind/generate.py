"""Sampling and chat: a prompt in, text out, token by token from a preallocated cache."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated

import torch
from torch import Tensor

from minimind import tokenizer
from minimind.flags import Parser, add_fields
from minimind.model import Cache, MiniMind
from minimind.uses import WeightsConfig, opened


@dataclass(frozen=True, kw_only=True)
class ChatConfig(WeightsConfig):
    """Talk to trained weights. Without --prompt it reads questions from the terminal, one a line."""

    prompt: Annotated[str | None, "ask this once and leave"] = None
    system: Annotated[str | None, "system prompt; default: the template's own"] = None
    raw: Annotated[bool, "continue the prompt as plain text, without the chat template (pretrained weights)"] = False
    history: Annotated[int, "earlier messages kept as context"] = 6
    max_new_tokens: Annotated[int, "longest answer, in tokens"] = 512
    temperature: Annotated[float, "0 always takes the likeliest token"] = 0.85
    top_p: Annotated[float, "sample from the likeliest tokens that hold this much probability"] = 0.85
    seed: Annotated[int, "decides the sampling"] = 42
    device: Annotated[str, "cpu, cuda or cuda:N"] = "cpu"


def sample(logits: Tensor, *, temperature: float, top_p: float, generator: torch.Generator) -> int:
    """The next token from (V,) logits: nucleus sampling (Holtzman et al. 2020), or the likeliest at temperature 0."""
    if temperature == 0:
        return int(logits.argmax())
    probabilities = torch.softmax(logits.float() / temperature, -1)
    ordered, order = probabilities.sort(descending=True)
    ordered[ordered.cumsum(-1) - ordered > top_p] = 0  # the likeliest token always stays
    choice = torch.multinomial(ordered.cpu(), 1, generator=generator)
    return int(order[choice.to(order.device)])


@torch.inference_mode()
def generate(
    model: MiniMind,
    prompt: Sequence[int],
    *,
    max_new_tokens: int,
    eos_id: int,
    temperature: float = 0.0,
    top_p: float = 1.0,
    seed: int = 42,
) -> Iterator[int]:
    """Tokens that continue the prompt, one by one, until ``eos_id`` (not yielded) or ``max_new_tokens``."""
    device = next(model.parameters()).device
    generator = torch.Generator().manual_seed(seed)
    limit = min(len(prompt) + max_new_tokens, model.config.max_position_embeddings)
    cache = Cache(limit=limit)
    ids = torch.tensor([list(prompt)], device=device)
    for _ in range(limit - len(prompt)):
        logits = model(ids, cache=cache, select=torch.tensor([ids.shape[1] - 1], device=device))[0]  # (V,)
        token = sample(logits, temperature=temperature, top_p=top_p, generator=generator)
        if token == eos_id:
            return
        yield token
        ids = torch.tensor([[token]], device=device)


def stream_text(words: tokenizer.Tokenizer, tokens: Iterator[int]) -> Iterator[str]:
    """Text as soon as it is whole: bytes of a character that spans tokens wait for the rest."""
    seen: list[int] = []
    shown = ""
    for token in tokens:
        seen.append(token)
        text = words.decode(seen)
        if not text.endswith("\ufffd"):
            yield text[len(shown) :]
            shown = text
    if seen and (rest := words.decode(seen)[len(shown) :]):
        yield rest


def answer_once(
    model: MiniMind,
    words: tokenizer.Tokenizer,
    messages: Sequence[Mapping[str, str]],
    *,
    max_new_tokens: int,
    temperature: float,
    seed: int,
) -> str:
    """The assistant's whole answer to a conversation."""
    prompt = words.encode(words.prompt(messages))
    tokens = generate(
        model,
        prompt,
        max_new_tokens=max_new_tokens,
        eos_id=words.eos_id,
        temperature=temperature,
        top_p=0.85,
        seed=seed,
    )
    return words.decode(list(tokens))


def chat(argv: Sequence[str]) -> int:
    """``python -m minimind chat``; returns the exit code."""
    parser = Parser(prog="python -m minimind chat", description=ChatConfig.__doc__, allow_abbrev=False)
    add_fields(parser, ChatConfig, {})
    config = ChatConfig(**vars(parser.parse_args(list(argv), argparse.Namespace())))
    use = opened(config, verb="chat", device=config.device)
    model, words = use.model, use.words
    messages: list[dict[str, str]] = []
    for question in [config.prompt] if config.prompt is not None else _questions():
        messages = [*messages[-config.history :], {"role": "user", "content": question}] if config.history else []
        messages = messages or [{"role": "user", "content": question}]
        system = [{"role": "system", "content": config.system}] if config.system else []
        prompt = words.encode(question if config.raw else words.prompt([*system, *messages]))
        tokens = generate(
            model,
            prompt,
            max_new_tokens=config.max_new_tokens,
            eos_id=words.pad_id if config.raw else words.eos_id,
            temperature=config.temperature,
            top_p=config.top_p,
            seed=config.seed,
        )
        answer = ""
        for piece in stream_text(words, tokens):
            answer += piece
            print(piece, end="", flush=True)
        print(flush=True)
        messages.append({"role": "assistant", "content": answer})
    return 0


def _questions() -> Iterator[str]:
    while True:
        if sys.stdin.isatty():
            print("> ", end="", file=sys.stderr, flush=True)
        line = sys.stdin.readline()
        if not line:
            return
        if line.strip():
            yield line.strip()
