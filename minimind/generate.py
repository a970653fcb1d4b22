"""Talking to weights: what `chat`, `eval` and `serve` open and how their options are checked; the chat itself."""

from __future__ import annotations

import argparse
import contextlib
import math
import os
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, TypeVar

import torch

from minimind import checkpoint, lora, tokenizer
from minimind.config import UsageError
from minimind.dialogue import Speaker, Splitter, TextStream, speaker, visible
from minimind.flags import Parser, add_fields
from minimind.model import MiniMind
from minimind.rundir import Reason, RunError
from minimind.sampling import Sampling, generate

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
    """Which weights, with what on them, and where they compute."""

    from_weight: Annotated[str | None, "weights: a file, or a name in save_dir; their shape is found from the file"] = (
        None
    )
    save_dir: Annotated[Path, "where names of weights are looked for"] = Path("out")
    from_lora: Annotated[Path | None, "adapter on top of them"] = None
    tokenizer: Annotated[Path | None, "folder with tokenizer.json; default: tokenizer/ beside the weights"] = None
    raw: Annotated[
        bool | None, "1 continues plain text, 0 uses the chat template; default: what the weights are (pretrain: 1)"
    ] = None
    think: Annotated[bool, "let the template open thoughts before the answer, where it can (minimind3)"] = False
    device: Annotated[str, "auto, cpu, cuda or cuda:N"] = "auto"


@dataclass(frozen=True, kw_only=True)
class ChatConfig(WeightsConfig):
    """Talk to trained weights. Without --prompt it reads questions from standard input, one a line.

    On a terminal /clear forgets what was said, /exit leaves; Ctrl-C ends an answer, at the prompt it leaves.
    """

    prompt: Annotated[str | None, "ask this once and leave"] = None
    system: Annotated[str | None, "system prompt; default: the template's own"] = None
    history: Annotated[int, "earlier messages kept as context, in whole pairs of question and answer"] = 6
    max_new_tokens: Annotated[int, "longest answer, in tokens"] = 512
    temperature: Annotated[float, "0 always takes the likeliest token"] = 0.85
    top_p: Annotated[float, "sample from the likeliest tokens that hold this much probability"] = 0.85
    seed: Annotated[int, "decides the sampling"] = 42


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
            remedy="give a file or a name in save_dir, e.g. --from_weight out/full_sft_512.pth",
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


def fitting_tokenizer(folder: Path | None, weights: Path, model: MiniMind) -> tokenizer.Tokenizer:
    """The tokenizer given, else the one beside the weights.

    Raises:
        RunError: when there is none, or its vocabulary is larger than the model's.
    """
    words = tokenizer.load(folder or weights.parent / "tokenizer")
    if words.vocab_size > model.config.vocab_size:
        raise RunError(
            f"the tokenizer in {words.folder} is not the model's",
            why=f"it has {words.vocab_size} entries, the model's embedding {model.config.vocab_size}",
            remedy="give the tokenizer that the weights were trained with: --tokenizer PATH",
            reason=Reason.DATA_INVALID,
        )
    return words


def opened(config: WeightsConfig) -> tuple[MiniMind, Speaker]:
    """The model with its adapter, on its device, and how it is spoken to; which template that is goes to stderr.

    Raises:
        RunError: when weights, adapter or tokenizer are missing or do not fit one another.
    """
    device = device_of(config.device)
    weights = checkpoint.find_weights(config.from_weight or "", config.save_dir)
    model = checkpoint.load_model(weights, device)
    words = fitting_tokenizer(config.tokenizer, weights, model)
    if config.from_lora:
        lora.apply(model, config.from_lora)
    found, said = speaker(
        words,
        model.config,
        weights,
        checkpoint.sidecar_of(weights),
        raw=config.raw,
        think=config.think,
        adapted=bool(config.from_lora),
    )
    print(said, file=sys.stderr, flush=True)
    return model, found


def chat(argv: Sequence[str]) -> int:
    """``python -m minimind chat``; returns the exit code."""
    config = parsed("chat", ChatConfig, argv)
    for stream in (sys.stdin, sys.stdout):
        with contextlib.suppress(AttributeError):
            stream.reconfigure(errors="replace")  # type: ignore[union-attr]
    try:
        return Chat(config).talk()
    except BrokenPipeError:  # whoever read the answers has enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


class Chat:
    """One conversation: answers on stdout, everything else on stderr."""

    def __init__(self, config: ChatConfig) -> None:
        self.config = config
        self.model, self.speaker = opened(config)
        self.past: list[tuple[str, str]] = []
        self.by_hand = config.prompt is None and sys.stdin.isatty()

    def talk(self) -> int:
        """Answer every question; returns the exit code."""
        for question in self._questions():
            try:
                interrupted = self.answer(question)
            except RunError as error:
                if not self.by_hand:
                    raise
                print(f"error: {error}", file=sys.stderr, flush=True)
                continue
            if interrupted and not self.by_hand:
                return 130
        return 0

    def _questions(self) -> Iterator[str]:
        if self.config.prompt is not None:
            yield self.config.prompt
            return
        while True:
            if self.by_hand:
                print("> ", end="", file=sys.stderr, flush=True)
            line = sys.stdin.readline()
            if not line or (self.by_hand and line.strip() == "/exit"):
                return
            if self.by_hand and line.strip() == "/clear":
                self.past.clear()
            elif line.strip():
                yield line.strip()

    def answer(self, question: str) -> bool:
        """Print the answer as it comes; True when Ctrl-C cut it short.

        Raises:
            RunError: when the question does not fit the model, or there is nothing to continue.
        """
        prompt, template_opened = self._prompt(question)
        stream, splitter, said = TextStream(self.speaker.words), Splitter(template_opened), ""
        interrupted, ended = False, "answer"
        try:
            for token in generate(self.model, prompt, self._sampling()):
                piece = stream.push(token)
                said += piece
                ended = self._show(splitter, piece, ended)
            piece = stream.close()
            said += piece
            ended = self._show(splitter, piece, ended, last=True)
        except KeyboardInterrupt:
            interrupted = True
        if ended == "thought":
            note = "interrupted" if interrupted else "the answer ended in its thoughts: raise --max_new_tokens"
            print(f"\n({note})", file=sys.stderr, flush=True)
        print(flush=True)
        self.past.append((question, template_opened * ("</think>" not in template_opened) + said))
        return interrupted

    def _prompt(self, question: str) -> tuple[list[int], str]:
        if self.speaker.raw:
            if not (ids := self.speaker.continued(question)):
                raise UsageError(
                    "there is nothing to continue",
                    why="the text is empty, and these weights begin no text by themselves",
                    remedy='give at least one character, e.g. --prompt "今天"',
                )
            return ids, ""
        kept = self.config.history // 2
        self.past = self.past[max(0, len(self.past) - kept) :]
        ids, template_opened, dropped = self.speaker.fitted(
            self.config.system, self.past, question, room=self.config.max_new_tokens
        )
        if dropped:
            print(
                f"(the {dropped} oldest of {len(self.past)} earlier questions no longer fit and are left out)",
                file=sys.stderr,
                flush=True,
            )
            self.past = self.past[dropped:]
        return ids, template_opened

    def _sampling(self) -> Sampling:
        chosen: dict[str, Any] = {
            n: getattr(self.config, n) for n in ("max_new_tokens", "temperature", "top_p", "seed")
        }
        return Sampling(stop_ids=self.speaker.stop_ids, **chosen)

    def _show(self, splitter: Splitter, piece: str, before: str, *, last: bool = False) -> str:
        if self.speaker.raw:
            print(visible(piece), end="", flush=True)
            return before
        for kind, part in splitter.push(piece, last=last):
            if kind != before:
                print("[thinks] " if kind == "thought" else "\n", end="", file=sys.stderr, flush=True)
            print(visible(part), end="", flush=True, file=sys.stderr if kind == "thought" else sys.stdout)
            before = kind
        return before
