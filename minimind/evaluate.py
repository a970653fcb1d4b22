"""Measuring weights: held-out loss and perplexity, which of two answers is likelier, answers to a sheet of prompts."""

from __future__ import annotations

import functools
import json
import math
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch

from minimind import jsonl, shards
from minimind.batches import Reader
from minimind.config import UsageError
from minimind.dialogue import Speaker, readable, visible
from minimind.durable import publish
from minimind.losses import linear_log_probs, sum_by_document
from minimind.model import MiniMind
from minimind.rundir import Reason, RunError
from minimind.sampling import Sampling, generate_all
from minimind.uses import SpokenConfig, parsed, spoken

BATCH = 16
KINDS: dict[str, shards.Kind] = {"text": "text", "conversations": "chat", "chosen": "pair"}


@dataclass(frozen=True, kw_only=True)
class EvalConfig(SpokenConfig):
    """Measure weights on held-out data, or let them answer a sheet of prompts."""

    data_path: Annotated[Path | None, "JSONL of texts, conversations or pairs; which, its first line says"] = None
    prompts: Annotated[Path | None, "text file with a prompt a line"] = None
    sheet: Annotated[Path | None, "markdown file that the answers go to; default: the console"] = None
    max_seq_len: Annotated[int, "tokens of one text; longer ones are cut on the right"] = 512
    max_new_tokens: Annotated[int, "longest answer, in tokens"] = 256
    seed: Annotated[int, "decides the sampling of answers"] = 42
    temperature: Annotated[float, "0 always takes the likeliest token"] = 0.0
    top_p: Annotated[float, "sample from the likeliest tokens that hold this much probability"] = 0.85


def kind_of(path: Path) -> shards.Kind:
    """What a file's first line that is not blank holds.

    Raises:
        RunError: DATA_MISSING or DATA_INVALID.
    """
    for _, line in jsonl.parse_lines(path, lambda line: line, skip_bad_lines=0):
        for key, kind in KINDS.items():
            if key in line:
                return kind
        break
    raise RunError(
        f"{path} cannot be measured on",
        why=f"its first line has none of the keys {', '.join(KINDS)}",
        remedy="give texts, conversations or preference pairs",
        reason=Reason.DATA_INVALID,
    )


@torch.inference_mode()
def measure(model: MiniMind, data: shards.Shards, *, max_seq_len: int, path: Path = Path("the data")) -> dict[str, Any]:
    """Numbers of a whole file.

    Returns:
        for texts and conversations: ``loss`` (nats a target), ``perplexity``, ``targets``; for pairs: ``accuracy`` (how
        often the chosen answer has the larger summed log-probability), ``margin`` (their mean difference), ``pairs``.

    Raises:
        RunError: DATA_INVALID when nothing in the file can be measured at this length, NAN_LOSS for weights that give
            no finite number.
    """
    reader = Reader(data, max_seq_len=max_seq_len, pack=True, max_tokens_per_batch=None)
    reader.refuse_nothing(path)
    device = next(model.parameters()).device
    loss_sum, margins, targets = 0.0, [], 0
    for first in range(0, len(reader.usable), BATCH):
        for batch in reader.batches(np.arange(first, min(first + BATCH, len(reader.usable)))):
            moved = batch.to(device)
            head = functools.partial(linear_log_probs, targets=moved.targets)
            each = model(moved.ids, lengths=moved.lengths, select=moved.select, head=head)  # (N,)
            targets += batch.count
            if data.kind == "pair":
                summed = sum_by_document(each, moved.document, moved.documents)
                chosen, rejected = summed.view(2, -1)  # each (P,)
                margins.append((chosen - rejected).cpu())
            else:
                loss_sum -= float(each.sum())
    if not math.isfinite(loss_sum + sum(float(one.sum()) for one in margins)):
        raise RunError(
            f"these weights cannot be measured on {path}",
            why="they give losses that are no finite numbers: they were damaged, or training diverged before they were "
            "written",
            remedy="use weights of an earlier checkpoint",
            reason=Reason.NAN_LOSS,
        )
    if data.kind == "pair":
        margin = torch.cat(margins)
        return {
            "accuracy": float((margin > 0).float().mean()),
            "margin": float(margin.mean()),
            "pairs": len(margin),
            "ranked_by": "summed log-probability, without a reference",
        }
    loss = loss_sum / targets
    return {"loss": loss, "perplexity": math.exp(min(loss, 700)), "targets": targets}


def sheet(model: MiniMind, speaker: Speaker, prompts: Sequence[str], config: EvalConfig) -> str:
    """Each prompt with its answer, as markdown; a batch of prompts is answered at once."""
    asked = [
        (speaker.continued(prompt), "") if speaker.raw else speaker.asked([{"role": "user", "content": prompt}])
        for prompt in prompts
    ]
    sampling = Sampling(
        max_new_tokens=config.max_new_tokens,
        stop_ids=speaker.stop_ids,
        temperature=config.temperature,
        top_p=config.top_p,
        seed=config.seed,
    )
    with_adapters = f" with {', '.join(config.from_lora)}" if config.from_lora else ""
    parts = [f"# Answers of {config.from_weight}{with_adapters}\n"]
    for first in range(0, len(prompts), BATCH):
        some = slice(first, first + BATCH)
        answers = generate_all(model, [ids for ids, _ in asked[some]], sampling)
        for prompt, (_, begun), ids in zip(prompts[some], asked[some], answers, strict=True):
            text = speaker.words.decode(ids)
            shown = visible(text).strip() if speaker.raw else readable(text, begun)
            parts.append(f"\n## {visible(prompt)}\n\n{shown}\n")
    return "".join(parts)


def _tell(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def evaluate(argv: Sequence[str]) -> int:
    """``python -m minimind eval``; one JSON object on stdout, and the sheet; returns the exit code."""
    config = parsed("eval", EvalConfig, argv)
    if config.data_path is None and config.prompts is None:
        raise UsageError(
            "eval needs something to measure the weights on",
            why="one of --data_path and --prompts must be given",
            remedy="python -m minimind eval --from_weight out/full_sft_512.pth --data_path held_out.jsonl",
        )
    model, speaker = spoken(config, verb="eval")
    words = speaker.words
    if config.data_path:
        kind = kind_of(config.data_path)
        if kind == "text" and model.config.arch == "minimind3":
            kind = "wrapped"
        with tempfile.TemporaryDirectory(prefix="minimind-") as spare:  # for data that lie on a read-only disk
            data = shards.load(config.data_path, kind, words, fallback=Path(spare) / "shards", say=_tell)
            found = measure(model, data, max_seq_len=config.max_seq_len, path=config.data_path)
        print(json.dumps({"data": str(config.data_path), "kind": kind, **found}, ensure_ascii=False), flush=True)
    if config.prompts:
        try:
            told = config.prompts.read_text(encoding="utf-8-sig")
        except (OSError, UnicodeDecodeError) as error:
            raise RunError(
                f"the prompts in {config.prompts} cannot be read",
                why=str(error),
                remedy="give a UTF-8 text file with a prompt a line",
                reason=Reason.DATA_MISSING,
            ) from error
        prompts = [line.strip() for line in told.splitlines() if line.strip()]
        if not prompts:
            raise RunError(
                f"{config.prompts} holds no prompt",
                why="every line of it is blank" if told else "it is empty",
                remedy="give a UTF-8 text file with a prompt a line",
                reason=Reason.DATA_INVALID,
            )
        text = sheet(model, speaker, prompts, config)
        publish(config.sheet, text.encode(), mode=0o644) if config.sheet else print(text, end="", flush=True)
    return 0
