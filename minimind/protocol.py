"""OpenAI's requests as prompts and samplings, answers as its JSON."""

from __future__ import annotations

import json
import secrets
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from minimind.dialogue import Speaker
from minimind.fields import Fields, Refused
from minimind.sampling import Sampling

NEUTRAL: dict[str, tuple[Any, ...]] = {
    "n": (1,),
    "best_of": (1,),
    "logprobs": (False, 0),
    "top_logprobs": (0,),
    "logit_bias": ({},),
    "presence_penalty": (0,),
    "frequency_penalty": (0,),
    "tools": ([],),
    "functions": ([],),
    "echo": (False,),
    "suffix": ("",),
    "response_format": ({"type": "text"},),
    "modalities": (["text"],),
}
"""Fields that would change the answer in a way that is not offered, with the values that change nothing."""


@dataclass(frozen=True, kw_only=True)
class Defaults:
    """What holds where a request says nothing."""

    max_new_tokens: int
    temperature: float
    top_p: float


@dataclass(frozen=True, kw_only=True)
class Asked:
    """One checked request."""

    chat: bool
    prompt: list[int]
    opened: str
    sampling: Sampling
    stop: tuple[str, ...]
    stream: bool
    include_usage: bool


def asked(body: Mapping[str, Any], speaker: Speaker, defaults: Defaults, *, chat: bool) -> Asked:
    """A request, checked and tokenised.

    Raises:
        Refused: naming the field; with code context_length_exceeded when it does not fit the model.
    """
    fields = Fields(body)
    for name, values in NEUTRAL.items():
        if body.get(name) is not None and body[name] not in values:
            fields.refuse(name, f"only {json.dumps(values[0])} is offered", "unsupported_value")
    options = body.get("stream_options")
    if options is not None and (not isinstance(options, dict) or not fields.flag("stream")):
        fields.refuse("stream_options", "must be an object, and needs stream")
    if chat:
        ids, opened = _conversation(fields, speaker)
    else:
        ids, opened = _plain(fields, speaker), ""
    asked_for = "max_completion_tokens" if chat and body.get("max_completion_tokens") is not None else "max_tokens"
    most = fields.whole(asked_for, 1, 2**31)
    positions = speaker.config.max_position_embeddings
    if len(ids) + (most or 1) > positions:
        raise Refused(
            f"the model has {positions} positions; asked for are {len(ids)} tokens of prompt, {most or 1} of answer",
            param="messages" if chat else "prompt",
            code="context_length_exceeded",
        )
    seed = fields.whole("seed", -(2**63), 2**63 - 1)
    sampling = Sampling(
        max_new_tokens=most or min(defaults.max_new_tokens, positions - len(ids)),
        stop_ids=speaker.stop_ids,
        temperature=fields.number("temperature", 0, 2, defaults.temperature),
        top_p=fields.number("top_p", 0, 1, defaults.top_p),
        seed=secrets.randbits(63) if seed is None else seed % 2**63,
    )
    include = Fields(options or {}).flag("include_usage")
    return Asked(
        chat=chat,
        prompt=ids,
        opened=opened,
        sampling=sampling,
        stop=fields.stop(),
        stream=fields.flag("stream"),
        include_usage=include,
    )


def _conversation(fields: Fields, speaker: Speaker) -> tuple[list[int], str]:
    if speaker.raw:
        raise Refused(
            "these weights continue plain text and were not trained to chat: use /v1/completions",
            code="unsupported_endpoint",
        )
    switches = fields.body.get("chat_template_kwargs")
    if switches is not None and not isinstance(switches, dict):
        fields.refuse("chat_template_kwargs", "must be an object", "invalid_type")
    found = Fields(switches or {})
    named = [name for name in ("open_thinking", "enable_thinking") if (switches or {}).get(name) is not None]
    think = any(found.flag(name) for name in named) if named else speaker.think
    if think and not speaker.words.can_think:
        fields.refuse("chat_template_kwargs", "the template of these weights opens no thoughts", "unsupported_value")
    return speaker.asked(fields.messages(), think=think)


def _plain(fields: Fields, speaker: Speaker) -> list[int]:
    prompt = fields.body.get("prompt", "")
    if isinstance(prompt, list) and len(prompt) == 1 and isinstance(prompt[0], str | list):
        prompt = prompt[0]
    if isinstance(prompt, list):
        vocabulary = speaker.config.vocab_size
        if not all(isinstance(i, int) and not isinstance(i, bool) and 0 <= i < vocabulary for i in prompt):
            fields.refuse("prompt", "must be one text, or the token ids of one")
        ids = list(prompt)
    else:
        ids = speaker.continued(fields.text("prompt", prompt))
    if not ids:
        fields.refuse("prompt", "there is nothing to continue")
    return ids


class Reply:
    """The JSON of one answer, whole or in chunks."""

    def __init__(self, asked: Asked, model: str) -> None:
        self.asked, self.completion_tokens = asked, 0
        self.head = {
            "id": f"{'chatcmpl' if asked.chat else 'cmpl'}-{secrets.token_hex(12)}",
            "created": int(time.time()),
            "model": model,
        }

    def usage(self) -> dict[str, int]:
        """Tokens read and written."""
        read, written = len(self.asked.prompt), self.completion_tokens
        return {"prompt_tokens": read, "completion_tokens": written, "total_tokens": read + written}

    def whole(self, parts: Sequence[tuple[str, str]], finish: str) -> dict[str, Any]:
        """The answer in one piece; ``parts`` are (kind, text)."""
        text = {kind: "".join(part for k, part in parts if k == kind) for kind in ("thought", "answer")}
        choice: dict[str, Any] = {"index": 0, "finish_reason": finish, "logprobs": None}
        if self.asked.chat:
            choice["message"] = {"role": "assistant", "content": text["answer"]}
            if text["thought"]:
                choice["message"]["reasoning_content"] = text["thought"]
        else:
            choice["text"] = text["answer"]
        kind = "chat.completion" if self.asked.chat else "text_completion"
        return {**self.head, "object": kind, "choices": [choice], "usage": self.usage()}

    def chunk(self, kind: str | None = None, text: str = "", finish: str | None = None) -> dict[str, Any]:
        """One event of a stream; without kind and finish the one that opens it."""
        choice: dict[str, Any] = {"index": 0, "finish_reason": finish, "logprobs": None}
        if not self.asked.chat:
            choice["text"] = text
        elif kind is None:
            choice["delta"] = {} if finish else {"role": "assistant", "content": ""}
        else:
            choice["delta"] = {"reasoning_content" if kind == "thought" else "content": text}
        return {**self._event(), "choices": [choice], **({"usage": None} if self.asked.include_usage else {})}

    def last(self) -> dict[str, Any]:
        """The event with the usage."""
        return {**self._event(), "choices": [], "usage": self.usage()}

    def _event(self) -> dict[str, Any]:
        return {**self.head, "object": "chat.completion.chunk" if self.asked.chat else "text_completion"}
