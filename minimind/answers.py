"""Conversations as text, and which of its characters the assistant wrote."""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping, Sequence
from typing import Any

from minimind.tokenizer import BOS, DEFAULT_SYSTEM, EOS, HEADER, Messages, Tokenizer, tools_of

END = f"{EOS}\n"
Spans = list[tuple[int, int]]


class Answers:
    """Renders conversations; a template is asked once wherever its text tells by itself where each answer stands."""

    def __init__(self, words: Tokenizer) -> None:
        self.words = words

    def rendered(self, messages: Messages) -> tuple[str, Spans]:
        """The text, and the characters ``[start, end)`` of each assistant turn with its ``<|im_end|>`` and newline.

        Roles are the line's roles, whatever their order. The template's text of the first k messages must be a
        prefix of the whole, which holds for MiniMind's. A turn's own header (minimind3) is no part of it; in minimind2
        the user's turn has written it.

        Raises:
            RunError: when the template refuses it.
        """
        tools = tools_of(messages)
        text = self.words.render(messages, tools=tools)
        spans = self.by_turns(text, messages) if self._writes_header else self.by_messages(text, messages)
        return text, self.by_prefixes(text, messages) if spans is None else spans

    def by_turns(self, text: str, messages: Messages) -> Spans | None:
        """The spans, where the text is turns of which the template wrote every begin and every end."""
        if any(_mentions_specials(message) for message in messages):
            return None
        turns = text.split(END)
        if turns.pop() or text.count(BOS) != len(turns) or text.count(EOS) != len(turns):
            return None
        spans, at = [], 0
        for turn in turns:
            if not turn.startswith(BOS):
                return None
            end = at + len(turn) + len(END)
            if turn.startswith(HEADER):
                spans.append((at + len(HEADER), end))
            at = end
        return spans if len(spans) == sum(message["role"] == "assistant" for message in messages) else None

    def by_messages(self, text: str, messages: Messages) -> Spans | None:
        """The spans, where the text is minimind2's of these messages; it is made again to see that."""
        if tools_of(messages):
            return None
        system = messages[0]["content"] if messages[0]["role"] == "system" else DEFAULT_SYSTEM
        parts = [f"{BOS}system\n{system}{END}"]
        spans, at = [], len(parts[0])
        for message in messages:
            part = ""
            if message["role"] == "assistant":
                part = f"{message['content']}{END}"
                spans.append((at, at + len(part)))
            elif message["role"] == "user":
                part = f"{BOS}user\n{message['content']}{END}{HEADER}"
            parts.append(part)
            at += len(part)
        return spans if "".join(parts) == text else None

    def by_prefixes(self, text: str, messages: Messages) -> Spans:
        """The spans whatever the template does, by rendering every beginning of the conversation too."""
        tools = tools_of(messages)
        upto = {len(messages): text}

        def first(count: int) -> str:
            if count not in upto:
                upto[count] = self.words.render(messages[:count], tools=tools)
            return upto[count]

        spans = []
        for index, message in enumerate(messages):
            if message["role"] != "assistant":
                continue
            end = len(first(index + 1))
            if index:
                before = len(first(index))
                own_header = self._writes_header and text.startswith(HEADER, before)
                start = before + (len(HEADER) if own_header else 0)
            elif self._writes_header:  # behind what the template puts first, such as tools
                start = text.index(HEADER) + len(HEADER)
            else:  # behind a system turn that the template added
                start = end - len(message["content"]) - len(END)
            spans.append((start, end))
        return spans

    @functools.cached_property
    def _writes_header(self) -> bool:
        """Whether an assistant's turn begins with its own header (minimind3); else the user's turn has written it."""
        asked = [{"role": "user", "content": "x"}]
        whole = self.words.render([*asked, {"role": "assistant", "content": "y"}])
        return whole.startswith(HEADER, len(self.words.render(asked)))


def _mentions_specials(message: Mapping[str, Any]) -> bool:
    told: Sequence[str] = [
        value if isinstance(value, str) else json.dumps(value, ensure_ascii=False) for value in message.values()
    ]
    return any(BOS in text or EOS in text for text in told)
