"""`chat`: talking to weights, a question and an answer at a time."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

from minimind.config import UsageError
from minimind.dialogue import Splitter, TextStream, visible
from minimind.rundir import RunError
from minimind.sampling import Sampling, generate
from minimind.uses import SpokenConfig, parsed, spoken


@dataclass(frozen=True, kw_only=True)
class ChatConfig(SpokenConfig):
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
        self.model, self.speaker = spoken(config, verb="chat")
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
