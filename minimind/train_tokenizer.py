"""The tokenizer stage: text in, ``tokenizer/`` out, recorded in a run directory like every other stage."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from minimind import jsonl, tokenizer
from minimind.attempt import Attempt
from minimind.catalog import CATALOG, TOKENIZER_FILES
from minimind.config import TokenizerConfig
from minimind.durable import link_over, write_sums


def _texts(line: Mapping[str, Any]) -> list[str]:
    if "conversations" in line:
        return [message["content"] for message in jsonl.messages(line, "conversations")]
    return [jsonl.pretrain_text(line)]


def _read(path: Path, *, skip_bad_lines: int) -> Iterator[str]:
    faults = jsonl.Faults()
    for _, texts in jsonl.parse_lines(path, _texts, skip_bad_lines=skip_bad_lines, faults=faults):
        yield from texts
    if faults.bad or faults.blank:
        print(faults.told(path.name), flush=True)


def train_tokenizer(config: TokenizerConfig, argv: list[str]) -> None:
    """Train on the texts of a JSONL file (pretraining lines or conversations); rank 0 alone does it.

    Raises:
        RunError: DATA_MISSING or DATA_INVALID.
    """
    with Attempt("tokenizer", argv, run_dir=config.run_dir, save_dir=config.save_dir) as attempt:
        attempt.agreed = True
        if attempt.rank:
            return
        data_path = config.data_path or Path("dataset") / CATALOG["tokenizer"].default_data
        folder = attempt.dir.export / "tokenizer"
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        print(f"training a tokenizer of {config.vocab_size} entries on {data_path}", flush=True)
        tokenizer.train(_read(data_path, skip_bad_lines=config.skip_bad_lines), folder, vocab_size=config.vocab_size)
        made = tokenizer.Tokenizer(folder)
        write_sums(attempt.dir.export)
        for name in TOKENIZER_FILES:
            link_over(folder / name, config.save_dir / "tokenizer" / name)
        print(f"wrote {config.save_dir / 'tokenizer'} ({made.vocab_size} entries)", flush=True)
        attempt.status = "done"
