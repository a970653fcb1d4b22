"""Measuring weights: held-out loss and perplexity, which of two answers is likelier, answers to a sheet of prompts."""

from __future__ import annotations

import functools
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch

from minimind import checkpoint, jsonl, lora, shards
from minimind.batches import Reader
from minimind.config import UsageError
from minimind.durable import publish
from minimind.flags import Parser, add_fields
from minimind.generate import answer_once, fitting_tokenizer
from minimind.losses import linear_log_probs, sum_by_document
from minimind.model import MiniMind
from minimind.rundir import Reason, RunError
from minimind.tokenizer import Tokenizer

BATCH = 16
KINDS: dict[str, shards.Kind] = {"text": "text", "conversations": "chat", "chosen": "pair"}


@dataclass(frozen=True, kw_only=True)
class EvalConfig:
    """Measure weights on held-out data, or let them answer a sheet of prompts."""

    from_weight: Annotated[str | None, "weights: a file, or a name in save_dir; their shape is found from the file"] = (
        None
    )
    save_dir: Annotated[Path, "where names of weights are looked for"] = Path("out")
    from_lora: Annotated[Path | None, "adapter on top of them"] = None
    tokenizer: Annotated[Path | None, "folder with tokenizer.json; default: tokenizer/ beside the weights"] = None
    data_path: Annotated[Path | None, "JSONL of texts, conversations or pairs; which, its first line says"] = None
    prompts: Annotated[Path | None, "text file with a prompt a line"] = None
    sheet: Annotated[Path | None, "markdown file that the answers go to; default: the console"] = None
    max_seq_len: Annotated[int, "tokens of one text; longer ones are cut on the right"] = 512
    max_new_tokens: Annotated[int, "longest answer, in tokens"] = 256
    seed: Annotated[int, "decides the sampling of answers"] = 42
    temperature: Annotated[float, "0 always takes the likeliest token"] = 0.0
    device: Annotated[str, "cpu, cuda or cuda:N"] = "cpu"


def kind_of(path: Path) -> shards.Kind:
    """What a file's first line that is not blank holds.

    Raises:
        RunError: DATA_MISSING or DATA_INVALID.
    """
    for _, line in jsonl.parse_lines(path, lambda line: line, skip_bad_lines=0, faults=[]):
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
def measure(model: MiniMind, data: shards.Shards, *, max_seq_len: int) -> dict[str, Any]:
    """Numbers of a whole file.

    Returns:
        for texts and conversations: ``loss`` (nats a target), ``perplexity``, ``targets``; for pairs: ``accuracy`` (how
        often the chosen answer has the larger summed log-probability), ``margin`` (their mean difference), ``pairs``.
    """
    reader = Reader(data, max_seq_len=max_seq_len, pack=True, max_tokens_per_batch=None)
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
    if data.kind == "pair":
        margin = torch.cat(margins)
        return {"accuracy": float((margin > 0).float().mean()), "margin": float(margin.mean()), "pairs": len(margin)}
    loss = loss_sum / max(1, targets)
    return {"loss": loss, "perplexity": math.exp(min(loss, 700)), "targets": targets}


def sheet(model: MiniMind, words: Tokenizer, prompts: Sequence[str], config: EvalConfig) -> str:
    """Each prompt with its answer, as markdown."""
    parts = [f"# Answers of {config.from_weight}{f' with {config.from_lora}' if config.from_lora else ''}\n"]
    for prompt in prompts:
        answer = answer_once(
            model,
            words,
            [{"role": "user", "content": prompt}],
            max_new_tokens=config.max_new_tokens,
            temperature=config.temperature,
            seed=config.seed,
        )
        parts.append(f"\n## {prompt}\n\n{answer.strip()}\n")
    return "".join(parts)


def evaluate(argv: Sequence[str]) -> int:
    """``python -m minimind eval``; one JSON object on stdout, and the sheet; returns the exit code."""
    parser = Parser(prog="python -m minimind eval", description=EvalConfig.__doc__, allow_abbrev=False)
    add_fields(parser, EvalConfig, {})
    config = EvalConfig(**vars(parser.parse_args(list(argv))))
    if config.from_weight is None or (config.data_path is None and config.prompts is None):
        raise UsageError(
            "eval needs weights and something to measure them on",
            why="--from_weight and one of --data_path and --prompts must be given",
            remedy="python -m minimind eval --from_weight out/full_sft_512.pth --data_path held_out.jsonl",
        )
    weights = checkpoint.find_weights(config.from_weight, config.save_dir)
    model = checkpoint.load_model(weights, config.device)
    words = fitting_tokenizer(config.tokenizer, weights, model)
    if config.from_lora:
        lora.apply(model, config.from_lora)
    if config.data_path:
        kind = kind_of(config.data_path)
        if kind == "text" and model.config.arch == "minimind3":
            kind = "wrapped"
        fallback = config.data_path.parent / ".shards"
        data = shards.load(config.data_path, kind, words, fallback=fallback, say=lambda text: None)
        found = measure(model, data, max_seq_len=config.max_seq_len)
        print(json.dumps({"data": str(config.data_path), "kind": kind, **found}, ensure_ascii=False), flush=True)
    if config.prompts:
        try:
            prompts = [line.strip() for line in config.prompts.read_text().splitlines() if line.strip()]
        except (OSError, UnicodeDecodeError) as error:
            raise RunError(
                f"the prompts in {config.prompts} cannot be read",
                why=str(error),
                remedy="give a UTF-8 text file with a prompt a line",
                reason=Reason.DATA_MISSING,
            ) from error
        text = sheet(model, words, prompts, config)
        publish(config.sheet, text.encode(), mode=0o644) if config.sheet else print(text, end="", flush=True)
    return 0
