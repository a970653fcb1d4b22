"""Lines to tokens: what a line becomes as documents, which of their tokens are targets. No files, no processes.

A document is a text with the character spans that count; a line of pairs gives two of them.
"""

from __future__ import annotations

import functools
import itertools
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from minimind import jsonl
from minimind.answers import Answers
from minimind.pretokens import Pretokens, by_library
from minimind.rundir import RunError
from minimind.tokenizer import Messages, Tokenizer
from minimind.turns import Turns

Kind = Literal["text", "wrapped", "chat", "pair"]
"""How a line becomes documents: raw text (minimind2), text between bos and eos (minimind3), conversation, pair."""
DOCS_PER_SAMPLE: dict[Kind, int] = {"text": 1, "wrapped": 1, "chat": 1, "pair": 2}
TARGET = 1
IN_TAG = 2
TAGS = ("<think>", "</think>", "<answer>", "</answer>")
KEPT_CHARS = 1 << 18
"""Characters of a document that are tokenised: eight for each of the 32,768 positions a model has. The tokenizers
library takes some hundred bytes of memory for each byte of text, so a line of megabytes would take a gigabyte."""
EMPTY_THINK = "<think>\n\n</think>\n\n"
SYSTEM_PROMPTS = (
    "你是一位可靠的助手，请认真回答用户的问题。",
    "请用简洁、清楚的语言帮助用户。",
    "你是小型语言模型，知道的就说，不知道的就说不知道。",
    "你乐于助人，回答准确而友好。",
    "请一步一步思考，然后给出有用的回答。",
    "You are a careful assistant. Answer what is asked.",
    "You help people with short and correct answers.",
    "You are a small language model that tries to be useful.",
    "Be friendly, be honest, and keep to the point.",
    "Answer in the language of the question.",
)
"""What ``--random_system`` draws from; they are this project's own."""
Document = tuple[str, list[tuple[int, int]] | None]
"""Text, and the character spans whose tokens are targets (None: every token that is not padding)."""


@dataclass(frozen=True, kw_only=True)
class Rendering:
    """minimind3's two random changes to conversations. A sample's draw depends on the seed and its line alone."""

    random_system: float = 0.0
    drop_empty_think: float = 0.0
    seed: int = 0

    @property
    def key(self) -> str:
        """What tells these tokens from those of another setting; empty where nothing is changed."""
        if not self.random_system and not self.drop_empty_think:
            return ""
        return f"-sys{self.random_system:g}-think{self.drop_empty_think:g}-seed{self.seed}"


@dataclass(frozen=True, kw_only=True)
class Draw:
    """One sample's random decisions; both sides of a pair share it."""

    system: str | None = None
    drop_think: bool = False

    @classmethod
    def of(cls, rendering: Rendering, line: int) -> Draw:
        """The draw of the sample in this line."""
        if not rendering.key:
            return cls()
        rng = random.Random(f"{rendering.seed} {line}")
        system, prompt, think = rng.random(), rng.choice(SYSTEM_PROMPTS), rng.random()
        return cls(
            system=prompt if system < rendering.random_system else None,
            drop_think=think < rendering.drop_empty_think,
        )


@dataclass(frozen=True, kw_only=True)
class Encoded:
    """Tokens of some lines, in their order."""

    ids: np.ndarray  # (tokens,)
    targets: np.ndarray  # (tokens,) uint8: TARGET, with IN_TAG inside a whole tag
    lengths: np.ndarray  # (documents,) int64
    counts: np.ndarray  # (documents,) int32: targets behind the first token, which nothing predicts
    lines: np.ndarray  # (samples,) int64: where each sample stands in the file, from 1
    faults: jsonl.Faults


class Encoder:
    """Lines of one kind to tokens."""

    def __init__(self, tokenizer: Tokenizer, kind: Kind, rendering: Rendering, *, alone: bool = False) -> None:
        """``alone``: this process has one core to itself, so that the library's own threads would gain nothing."""
        self.tokenizer, self.kind, self.rendering = tokenizer, kind, rendering
        self._answers, self._turns = Answers(tokenizer), Turns(tokenizer)
        self.dtype = np.uint16 if tokenizer.vocab_size <= 1 << 16 else np.uint32
        self._ids: Callable[[Sequence[str]], list[np.ndarray]]
        if alone:
            self._ids = Pretokens(tokenizer, self.dtype).encode
        else:
            self._ids = functools.partial(by_library, tokenizer.backend, self.dtype)
        self._parse: Callable[[Mapping[str, Any], int], list[Document]] = {
            "text": self._text,
            "wrapped": self._text,
            "chat": self._chat,
            "pair": self._pair,
        }[kind]

    def encode(self, first: int, raw_lines: Sequence[bytes]) -> Encoded:
        """Tokens of consecutive lines, of which the first has the number ``first``."""
        faults = jsonl.Faults()
        documents: list[Document] = []
        lines: list[int] = []
        for number, raw in enumerate(raw_lines, first):
            if not raw.strip():
                faults.blank += 1
                continue
            try:
                parsed = self._parse(jsonl.decode(raw), number)
            except jsonl.BadLine as error:
                faults.note(number, str(error))
                continue
            lines.append(number)
            faults.shortened += sum(len(text) > KEPT_CHARS for text, _ in parsed)
            documents += [beginning(document) for document in parsed]
        ids, targets = self._tokens(documents)
        none = np.zeros(0, np.uint8)
        return Encoded(
            ids=np.concatenate(ids) if ids else none.astype(self.dtype),
            targets=np.concatenate(targets) if targets else none,
            lengths=np.array([len(one) for one in ids], np.int64),
            counts=np.array([np.count_nonzero(one[1:] & TARGET) for one in targets], np.int32),
            lines=np.array(lines, np.int64),
            faults=faults,
        )

    def _tokens(self, documents: Sequence[Document]) -> tuple[list[np.ndarray], list[np.ndarray]]:
        if self.kind in ("chat", "pair"):
            return self._turns_of(documents)
        ids = self._ids([text for text, _ in documents])
        if self.kind == "wrapped":
            bos, eos = (np.array([token], self.dtype) for token in (self.tokenizer.bos_id, self.tokenizer.eos_id))
            ids = [np.concatenate((bos, one, eos)) for one in ids]
        return ids, [(one != self.tokenizer.pad_id).astype(np.uint8) for one in ids]

    def _turns_of(self, documents: Sequence[Document]) -> tuple[list[np.ndarray], list[np.ndarray]]:
        """Ids and flags of conversations; the places of tokens in a text are asked for where nothing else tells."""
        backend, turns = self.tokenizer.backend, self._turns
        done: dict[int, tuple[np.ndarray, np.ndarray]] = {}
        spelled = [tag for tag in TAGS if tag not in turns.added]  # tags of several tokens
        easy = [n for n, (text, _) in enumerate(documents) if turns.usable and not any(tag in text for tag in spelled)]
        single = [turns.added[tag] for tag in TAGS if tag in turns.added]
        for number, ids in zip(easy, self._ids([documents[number][0] for number in easy]), strict=True):
            text, spans = documents[number]
            if (found := turns.find(text, spans or [], ids)) is not None:
                flags = _marked(len(ids), found)
                for tag in single:
                    flags[(ids == tag) & (flags == TARGET)] |= IN_TAG
                done[number] = ids, flags
        rest = [number for number in range(len(documents)) if number not in done]
        placed = backend.encode_batch([documents[number][0] for number in rest], add_special_tokens=False)
        for number, encoding in zip(rest, placed, strict=True):
            text, spans = documents[number]
            done[number] = np.array(encoding.ids, self.dtype), _flags(text, encoding.offsets, spans or [])
        return [done[n][0] for n in range(len(documents))], [done[n][1] for n in range(len(documents))]

    def _text(self, line: Mapping[str, Any], number: int) -> list[Document]:
        return [(jsonl.pretrain_text(line), None)]

    def _chat(self, line: Mapping[str, Any], number: int) -> list[Document]:
        return [self._rendered(jsonl.messages(line, "conversations"), Draw.of(self.rendering, number))]

    def _pair(self, line: Mapping[str, Any], number: int) -> list[Document]:
        draw = Draw.of(self.rendering, number)
        return [self._rendered(jsonl.messages(line, key), draw) for key in ("chosen", "rejected")]

    def _rendered(self, messages: Messages, draw: Draw) -> Document:
        plain = messages[0]["role"] != "system" and not any(message.get("tools") for message in messages)
        if draw.system is not None and plain:
            messages = [{"role": "system", "content": draw.system}, *messages]
        try:
            text, spans = self._answers.rendered(messages)
        except RunError as error:
            raise jsonl.BadLine(f"the chat template refuses it: {error.why}") from error
        jsonl.text_of(text, "the rendered conversation")  # tools and calls were not looked into before
        return without_empty_think(text, spans) if draw.drop_think else (text, spans)


def beginning(document: Document) -> Document:
    """The first :data:`KEPT_CHARS` characters of a document, and of its spans what lies within."""
    text, spans = document
    if len(text) <= KEPT_CHARS:
        return document
    kept = spans if spans is None else [(a, min(b, KEPT_CHARS)) for a, b in spans if a < KEPT_CHARS]
    return text[:KEPT_CHARS], kept


def without_empty_think(text: str, spans: Sequence[tuple[int, int]]) -> tuple[str, list[tuple[int, int]]]:
    """The text without the empty think blocks that begin its answers, and its spans moved accordingly."""
    parts, kept, at, gone = [], [], 0, 0
    for begin, end in spans:
        cut = len(EMPTY_THINK) if text.startswith(EMPTY_THINK, begin) else 0
        parts.append(text[at:begin])
        at = begin + cut
        kept.append((begin - gone, end - gone - cut))
        gone += cut
    return "".join([*parts, text[at:]]), kept


def _marked(length: int, spans: Sequence[tuple[int, int]]) -> np.ndarray:
    flags = np.zeros(length, np.uint8)
    for first, last in spans:
        flags[first:last] = TARGET
    return flags


def _flags(text: str, offsets: Sequence[tuple[int, int]], spans: Sequence[tuple[int, int]]) -> np.ndarray:
    """Targets are the tokens that begin within a span; a token that overlaps a whole tag there carries IN_TAG too."""
    flat = np.fromiter(itertools.chain.from_iterable(offsets), np.int64, 2 * len(offsets))
    starts, stops = flat[::2], flat[1::2]
    flags = np.zeros(len(offsets), np.uint8)
    for begin, end in spans:
        first, last = np.searchsorted(starts, (begin, end))  # tokens stand in the order of the text
        flags[first:last] = TARGET
        for tag in TAGS:
            at = text.find(tag, begin, end)
            while at >= 0:
                flags[(starts >= begin) & (starts < at + len(tag)) & (stops > at)] |= IN_TAG
                at = text.find(tag, at + 1, end)
    return flags
