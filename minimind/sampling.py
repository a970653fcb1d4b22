"""Tokens from logits: rows that come and go in one batch, nucleus sampling; B rows, V vocabulary."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from torch import Tensor

from minimind.cache import Cache, Pack, Piece, Stepper
from minimind.model import MiniMind
from minimind.rundir import Reason, RunError

PIECE = 512
"""Tokens of a prompt that are read at a time: between two pieces a reader that nobody waits for any more gives up."""


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """How a row's tokens are chosen and when it ends."""

    max_new_tokens: Annotated[int, "tokens"]
    stop_ids: frozenset[int]
    temperature: Annotated[float, "0 always takes the likeliest token"] = 0.0
    top_p: Annotated[float, "probability held by the likeliest tokens that are sampled from"] = 1.0
    seed: int = 42


@dataclass(kw_only=True, eq=False)
class Row:
    """One text being continued. ``token`` is its newest, None when the row ended without one."""

    sampling: Sampling
    position: int
    left: int
    generator: torch.Generator
    token: int | None = None
    finish: Literal["stop", "length"] | None = None


def choose(logits: Tensor, sampling: Sampling, generator: torch.Generator) -> int:
    """The next token from (V,) logits on the CPU: nucleus sampling (Holtzman et al. 2020), or the likeliest at 0.

    One uniform number a token from the row's own generator: a row's text does not depend on its neighbours.
    """
    if sampling.temperature == 0:
        return int(logits.argmax())
    # in fp64 a temperature near 0 stays finite
    probabilities = torch.softmax((logits - logits.max()).double() / sampling.temperature, -1)
    ordered, order = probabilities.sort(descending=True, stable=True)
    mass = ordered.cumsum(-1)
    kept = 1 + int(torch.searchsorted(mass[:-1], sampling.top_p))  # the likeliest token always stays
    point = torch.rand((), dtype=torch.float64, generator=generator) * mass[kept - 1]
    return int(order[int(torch.searchsorted(mass[: kept - 1], point, right=True))])


class Batch:
    """Rows that are continued together; each joins with a prompt, and leaves when it ends or is not wanted any more."""

    def __init__(self, model: MiniMind) -> None:
        self.model, self.cache, self.rows = model, Cache(model), list[Row]()
        self.stepper = Stepper(model, self.cache)

    @torch.inference_mode()
    def join(self, prompt: Sequence[int], sampling: Sampling, *, wanted: Callable[[], bool] = lambda: True) -> Row:
        """Read a prompt and take the first token after it; a row no longer ``wanted`` has neither token nor finish.

        Raises:
            RunError: when the prompt is empty or leaves no position for an answer, or the weights give no numbers.
        """
        row = self._row(prompt, sampling)
        index = len(self.rows)
        self.cache.reserve(index + 1, len(prompt) + min(row.left, PIECE))
        ids = torch.tensor([list(prompt)], device=self.cache.device)
        for start in range(0, len(prompt), PIECE):
            if not wanted():
                return row
            part = ids[:, start : start + PIECE]  # (1, T)
            last = torch.tensor([part.shape[1] - 1], device=ids.device)
            found = self.model(part, cache=Piece(self.cache, index, start, part.shape[1]), select=last)  # (1, V)
        self.rows.append(row)
        self._begin([row], found)
        return row

    @torch.inference_mode()
    def join_all(self, prompts: Sequence[Sequence[int]], sampling: Sampling) -> list[Row]:
        """The same for many prompts; short ones are read several at a time.

        Raises:
            RunError: as :meth:`join`.
        """
        joined = [self._row(prompt, sampling) for prompt in prompts]
        at, most = 0, min(PIECE, self.model.config.max_position_embeddings)
        while at < len(prompts):
            end = at + 1
            while end < len(prompts) and sum(map(len, prompts[at : end + 1])) <= most:
                end += 1
            lengths, first = [len(prompt) for prompt in prompts[at:end]], len(self.rows)
            if end == at + 1:
                joined[at] = self.join(prompts[at], sampling)
            else:
                self.cache.reserve(first + len(lengths), max(lengths) + min(joined[at].left, PIECE))
                ids = torch.tensor([[i for prompt in prompts[at:end] for i in prompt]], device=self.cache.device)
                last = torch.tensor(lengths, device=ids.device).cumsum(0) - 1
                found = self.model(ids, cache=Pack(self.cache, first, lengths), select=last)  # (prompts, V)
                self.rows += joined[at:end]
                self._begin(joined[at:end], found)
            at = end
        return joined

    def _row(self, prompt: Sequence[int], sampling: Sampling) -> Row:
        positions = self.model.config.max_position_embeddings
        if not prompt or len(prompt) >= positions:
            raise RunError(
                f"a prompt of {len(prompt)} tokens cannot be continued",
                why=f"the model has {positions} positions" if prompt else "there is nothing to continue",
                remedy="shorten the prompt" if prompt else "give a prompt with at least one token",
                reason=Reason.DATA_INVALID,
            )
        left = min(sampling.max_new_tokens, positions - len(prompt))
        generator = torch.Generator().manual_seed(sampling.seed)
        return Row(sampling=sampling, position=len(prompt), left=left, generator=generator)

    def _begin(self, rows: Sequence[Row], logits: Tensor) -> None:
        """Take the first token of rows that have just joined, from (rows, V); those that end at once leave."""
        logits = logits.float().cpu()
        if not torch.isfinite(logits).all():
            for row in rows:
                self.leave(row)
            raise RunError(
                "the weights give no finite logits",
                why="they were damaged, or training diverged before they were written",
                remedy="use weights of an earlier checkpoint",
                reason=Reason.NAN_LOSS,
            )
        for row, one in zip(rows, logits, strict=True):
            self._take(row, choose(one, row.sampling, row.generator))
        for row in [row for row in rows if row.finish]:
            self.leave(row)

    @torch.inference_mode()
    def step(self) -> None:
        """One more token for every row; rows that end leave."""
        if not self.rows:
            return
        tokens = [row.token for row in self.rows if row.token is not None]
        logits = self.stepper(tokens, [row.position for row in self.rows])  # (B, V)
        likeliest = logits.argmax(-1).tolist()  # (B,)
        for index, row in enumerate(self.rows):
            row.position += 1
            greedy = row.sampling.temperature == 0
            self._take(row, likeliest[index] if greedy else choose(logits[index], row.sampling, row.generator))
        for row in [row for row in self.rows if row.finish]:
            self.leave(row)

    @torch.inference_mode()
    def leave(self, row: Row) -> None:
        """Give up a row's place; the last row moves into it."""
        if row in self.rows:
            index, last = self.rows.index(row), len(self.rows) - 1
            if index != last:
                self.cache.move(last, index)
                self.rows[index] = self.rows[last]
            self.rows.pop()

    @staticmethod
    def _take(row: Row, token: int) -> None:
        row.left -= 1
        if token in row.sampling.stop_ids:
            row.token, row.finish = None, "stop"
        else:
            row.token, row.finish = token, "length" if row.left == 0 else None


def generate(model: MiniMind, prompt: Sequence[int], sampling: Sampling) -> Iterator[int]:
    """Tokens that continue the prompt, one by one, until a stop token (not yielded) or the longest answer."""
    batch = Batch(model)
    row = batch.join(prompt, sampling)
    while row.token is not None:
        yield row.token
        if row.finish:
            return
        batch.step()


def generate_all(model: MiniMind, prompts: Sequence[Sequence[int]], sampling: Sampling) -> list[list[int]]:
    """The continuation of each prompt, made together; each is what it would be alone with the same seed."""
    batch = Batch(model)
    rows = batch.join_all(prompts, sampling)
    texts = [[row.token] if row.token is not None else [] for row in rows]
    while batch.rows:
        live = [(row, text) for row, text in zip(rows, texts, strict=True) if row in batch.rows]
        batch.step()
        for row, text in live:
            if row.token is not None:
                text.append(row.token)
    return texts
