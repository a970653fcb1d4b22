"""The words around a model: which template its weights were trained for, what fits, tokens back to text."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from minimind.config import ModelConfig, UsageError
from minimind.rundir import Reason, RunError
from minimind.tokenizer import HEADER, Tokenizer

Kind = Literal["thought", "answer"]

CONTROLS = {
    code: f"\\x{code:02x}" if code < 256 else f"\\u{code:04x}"
    for code in (*range(32), *range(127, 160), *range(0x202A, 0x202F), *range(0x2066, 0x206A), 0x2028, 0x2029)
    if chr(code) not in "\n\t"
}
"""What moves a terminal's cursor, colours it, or turns the direction of its text; a model may write any of it."""


def visible(text: str) -> str:
    """The text with every control character spelled out, so that a terminal shows it and does not obey it."""
    return text.translate(CONTROLS)


@dataclass(frozen=True, kw_only=True)
class Speaker:
    """How these weights are spoken to: ``raw`` continues plain text, else the chat template is used."""

    words: Tokenizer
    config: ModelConfig
    raw: bool
    think: bool = False

    @property
    def stop_ids(self) -> frozenset[int]:
        """Tokens that end an answer."""
        return frozenset({self.words.eos_id, self.words.pad_id})

    def continued(self, text: str) -> list[int]:
        """Token ids of a plain text to go on with; minimind3 begins each text of its pretraining with bos."""
        return [self.words.bos_id] * (self.config.arch == "minimind3") + self.words.encode(text)

    def asked(self, messages: Sequence[Mapping[str, Any]], *, think: bool | None = None) -> tuple[list[int], str]:
        """Token ids of a conversation up to the answer, and what the template has opened for it (``<think>``)."""
        text = self.words.prompt(messages, think=self.think if think is None else think)
        return self.words.encode(text), text.rpartition(HEADER)[2]

    def fitted(
        self, system: str | None, past: Sequence[tuple[str, str]], question: str, *, room: int
    ) -> tuple[list[int], str, int]:
        """The prompt of a chat's next question: the oldest pairs go where it would leave less than ``room`` tokens.

        Args:
            system: system prompt, None for the template's own.
            past: questions and their answers, oldest first.
            question: what is asked now.
            room: tokens to leave for the answer; at most half of the model's positions are left.

        Returns:
            token ids, what the template opened, the number of pairs that were dropped.

        Raises:
            RunError: when the question alone is too long.
        """
        positions = self.config.max_position_embeddings
        limit = positions - min(room, positions // 2)
        first = [{"role": "system", "content": system}] if system else []
        for dropped in range(len(past) + 1):
            pairs = [
                {"role": role, "content": content}
                for pair in past[dropped:]
                for role, content in zip(("user", "assistant"), pair, strict=True)
            ]
            ids, opened = self.asked([*first, *pairs, {"role": "user", "content": question}])
            if len(ids) <= limit:
                return ids, opened, dropped
        raise RunError(
            f"the question is too long: {len(ids)} tokens with its system prompt",
            why=f"the model has {positions} positions, and {positions - limit} of them are kept for the answer",
            remedy="shorten it, or lower --max_new_tokens",
            reason=Reason.DATA_INVALID,
        )


def speaker(
    words: Tokenizer,
    config: ModelConfig,
    weights: Path,
    sidecar: Mapping[str, Any],
    *,
    raw: bool | None,
    think: bool,
    adapted: bool,
) -> tuple[Speaker, str]:
    """How weights are spoken to, and why, in words for stderr.

    ``raw`` decides; without it the sidecar's stage does, and for files of the original (no sidecar) their name.
    Adapters are trained on conversations.

    Raises:
        UsageError: when thoughts are asked for that the template cannot open.
    """
    stage = sidecar.get("stage")
    if raw is not None:
        plain, why = raw, "--raw" if raw else "--no-raw"
    elif adapted:
        plain, why = False, "an adapter is on the weights"
    elif isinstance(stage, str):
        plain, why = stage == "pretrain", f"the weights are of stage {stage}"
    else:
        plain, why = weights.name.startswith("pretrain"), f"by the file's name, {weights.name}"
    if think and (plain or not words.can_think):
        raise UsageError(
            "these weights cannot be told to think",
            why="plain text has no template" if plain else "their chat template has no switch for it",
            remedy="leave --think away; weights of the reason stage think by themselves",
        )
    said = (
        f"{'plain text is continued' if plain else 'chat template'} ({why}; --{'no-' if plain else ''}raw changes it)"
    )
    return Speaker(words=words, config=config, raw=plain, think=think), said


class TextStream:
    """Tokens to text as it becomes certain: whole characters only, and nothing that may begin a stop string."""

    def __init__(self, words: Tokenizer, stop: Sequence[str] = ()) -> None:
        self.words, self.stop = words, stop
        self.stopped = False
        """Whether a stop string was met; it and what follows is never given out."""
        self._ids: list[int] = []
        self._given = 0  # characters of _ids' text that are out of the decoder
        self._held = ""

    def push(self, token: int) -> str:
        """The text that is certain now."""
        self._ids.append(token)
        text = self.words.decode(self._ids)
        if text.endswith("\ufffd"):  # bytes of a character that spans tokens wait for the rest
            return ""
        fresh = text[self._given :]
        # some decoders treat a text's first token in their own way: the last token stays as context
        self._ids, self._given = [token], len(self.words.decode([token]))
        return self._pass(fresh)

    def close(self) -> str:
        """What was still held back."""
        rest = self.words.decode(self._ids)[self._given :] if self._ids and not self.stopped else ""
        return self._pass(rest) + ("" if self.stopped else self._held)

    def _pass(self, fresh: str) -> str:
        if self.stopped:
            return ""
        text = self._held + fresh
        found = [(at + len(stop), at) for stop in self.stop if (at := text.find(stop)) >= 0]
        if found:  # the one that was complete first, however many of its characters came at once
            self.stopped, self._held = True, ""
            return text[: min(found)[1]]
        keep = max((overlap(text, stop) for stop in self.stop), default=0)
        self._held = text[len(text) - keep :]
        return text[: len(text) - keep]


def overlap(text: str, tag: str) -> int:
    """Length of the longest end of the text that may begin ``tag``."""
    return next((n for n in range(min(len(text), len(tag) - 1), 0, -1) if tag.startswith(text[-n:])), 0)


class Splitter:
    """Thoughts apart from the answer, by the tags that reasoning weights write: <think>…</think><answer>…</answer>.

    Tags count only where such weights put them: thoughts at the very beginning, the answer's right behind them.
    """

    def __init__(self, opened: str = "") -> None:
        self._state = "thought" if "<think>" in opened and "</think>" not in opened else "start"
        self._held, self._fresh = "", True

    def push(self, text: str, *, last: bool = False) -> Iterator[tuple[Kind, str]]:
        """The parts that are certain now; ``last`` gives out what was held back."""
        self._held += text
        before = None
        while before != (self._state, self._held):
            before = self._state, self._held
            kind, part = self._next(last)
            if part:
                yield kind, part

    def _next(self, last: bool) -> tuple[Kind, str]:
        if self._state in ("start", "between"):
            return self._opening(last)
        if self._state in ("thought", "tagged"):
            return self._inside("</think>" if self._state == "thought" else "</answer>", last)
        given, self._held = (self._held.lstrip() if self._state == "after" else self._held), ""
        self._state = "plain" if given else self._state
        return "answer", given

    def _opening(self, last: bool) -> tuple[Kind, str]:
        tags = {"<answer>": "tagged"} if self._state == "between" else {"<think>": "thought", "<answer>": "tagged"}
        text = self._held.lstrip()
        for tag, state in tags.items():
            if text.startswith(tag):
                self._state, self._held, self._fresh = state, text[len(tag) :], True
                return "answer", ""
        if last or (text and not any(tag.startswith(text) for tag in tags)):
            if self._state == "between":
                self._held = text
            self._state = "plain"
        return "answer", ""

    def _inside(self, tag: str, last: bool) -> tuple[Kind, str]:
        kind: Kind = "thought" if self._state == "thought" else "answer"
        if self._fresh:
            self._held = self._held.lstrip("\n")
            self._fresh = not self._held
        part, found, rest = self._held.partition(tag)
        if found:
            self._state, self._held = ("between" if kind == "thought" else "after"), rest
            return kind, part.rstrip("\n")
        # newlines before the closing tag belong to it
        at = len(part) - overlap(part, tag)
        keep = len(part[:at].rstrip("\n"))
        if last:
            keep = len(part)
        self._held = part[keep:]
        return kind, part[:keep]


def split(text: str, opened: str = "") -> tuple[str, str]:
    """A whole text's thoughts and answer."""
    parts = {"thought": "", "answer": ""}
    for kind, part in Splitter(opened).push(text, last=True):
        parts[kind] += part
    return parts["thought"], parts["answer"]


def readable(text: str, opened: str = "") -> str:
    """A whole answer for a page: thoughts as a quotation before it."""
    thoughts, answer = split(text, opened)
    quoted = re.sub(r"(?m)^", "> ", thoughts) + "\n\n" if thoughts.strip() else ""
    return visible(quoted + answer.strip())
