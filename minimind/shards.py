"""JSONL tokenised once into memory-mapped arrays, built under a lock and published by rename.

A shard folder holds ``ids.bin`` (uint16; uint32 for large vocabularies), ``targets.bin`` (uint8:
TARGET, IN_TAG),
``offsets.npy`` (int64, documents + 1) and ``meta.json``. Texts are kept whole; ``max_seq_len`` cuts at reading.
"""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np

from minimind import jsonl
from minimind.catalog import StageInfo
from minimind.durable import fsync_dir, sha256_file, to_json
from minimind.rundir import Reason, RunError
from minimind.tokenizer import Tokenizer

Kind = Literal["text", "wrapped", "chat", "pair"]
"""How a line becomes documents: raw text (minimind2), text between bos and eos (minimind3), conversation, pair."""
VERSION = 2
TARGET = 1
IN_TAG = 2
TAGS = ("<think>", "</think>", "<answer>", "</answer>")
BATCH_CHARS = 1 << 20
DOCS_PER_SAMPLE: dict[Kind, int] = {"text": 1, "wrapped": 1, "chat": 1, "pair": 2}
Document = tuple[str, list[tuple[int, int]] | None]
"""Text, and the character spans whose tokens are targets (None: every token that is not padding)."""


@dataclass(frozen=True, kw_only=True)
class Shards:
    """Tokenised documents, in the file's order; a pair's chosen and rejected are neighbours."""

    folder: Path
    kind: Kind
    ids: np.ndarray = field(repr=False)  # (tokens,)
    targets: np.ndarray = field(repr=False)  # (tokens,) TARGET where the token counts, with IN_TAG inside a whole tag
    offsets: np.ndarray = field(repr=False)  # (documents + 1,)
    meta: Mapping[str, Any] = field(repr=False)

    @property
    def samples(self) -> int:
        """Lines of the file that hold a sample."""
        return (len(self.offsets) - 1) // DOCS_PER_SAMPLE[self.kind]

    def lengths(self, max_seq_len: int) -> np.ndarray:
        """Tokens of each document after the cut, (documents,)."""
        lengths: np.ndarray = np.minimum(np.diff(self.offsets), max_seq_len)
        return lengths

    def target_counts(self, max_seq_len: int) -> np.ndarray:
        """Targets of each document after the cut, (documents,): its first token is never one, nothing predicts it."""
        starts = self.offsets[:-1]
        ends = starts + self.lengths(max_seq_len)
        counts = np.zeros(len(starts), np.int64)
        step = 1 << 16
        for first in range(0, len(starts), step):
            s, e = starts[first : first + step] + 1, ends[first : first + step]
            some = e > s
            if some.any():
                base, top = int(s[some][0]), int(e[some].max())
                sums = np.concatenate(([0], np.cumsum(self.targets[base:top] & TARGET, dtype=np.int64)))
                counts[first : first + step][some] = sums[e[some] - base] - sums[s[some] - base]
        return counts

    def cut(self, max_seq_len: int) -> dict[str, int]:
        """How much the cut to ``max_seq_len`` takes away: documents, tokens."""
        lengths = np.diff(self.offsets)
        long = lengths > max_seq_len
        return {"documents": int(long.sum()), "tokens": int((lengths[long] - max_seq_len).sum())}


def kind_for(info: StageInfo, arch: str) -> Kind:
    """How a stage reads its lines: minimind3 puts a raw text between bos and eos."""
    if info.line == "text":
        return "wrapped" if arch == "minimind3" else "text"
    return "pair" if info.line == "pair" else "chat"


def _parser(kind: Kind, tokenizer: Tokenizer) -> Callable[[Mapping[str, Any]], list[Document]]:
    if kind in ("text", "wrapped"):
        return lambda line: [(jsonl.pretrain_text(line), None)]
    if kind == "chat":
        return lambda line: [tokenizer.render_with_answers(jsonl.messages(line, "conversations"))]
    return lambda line: [tokenizer.render_with_answers(jsonl.messages(line, key)) for key in ("chosen", "rejected")]


def _flags(text: str, offsets: Sequence[tuple[int, int]], spans: list[tuple[int, int]]) -> np.ndarray:
    """Targets are the tokens that begin within a span; a token that overlaps a whole tag there carries IN_TAG too."""
    starts, stops = np.array(offsets, np.int64).reshape(-1, 2).T
    flags = np.zeros(len(offsets), np.uint8)
    for begin, end in spans:
        flags[(starts >= begin) & (starts < end)] = TARGET
        for tag in TAGS:
            at = text.find(tag, begin, end)
            while at >= 0:
                flags[(starts >= begin) & (starts < at + len(tag)) & (stops > at)] |= IN_TAG
                at = text.find(tag, at + 1, end)
    return flags


def _batches(documents: Iterator[list[Document]]) -> Iterator[list[Document]]:
    batch: list[Document] = []
    chars = 0
    for sample in documents:
        batch += sample
        chars += sum(len(text) for text, _ in sample)
        if chars >= BATCH_CHARS:
            yield batch
            batch, chars = [], 0
    if batch:
        yield batch


def _write(folder: Path, path: Path, kind: Kind, tokenizer: Tokenizer, *, skip_bad_lines: int) -> dict[str, Any]:
    dtype = np.uint16 if tokenizer.vocab_size <= 1 << 16 else np.uint32
    faults: list[jsonl.Fault] = []
    offsets, total = [0], 0
    lines = jsonl.parse_lines(path, _parser(kind, tokenizer), skip_bad_lines=skip_bad_lines, faults=faults)
    with open(folder / "ids.bin", "wb") as ids_file, open(folder / "targets.bin", "wb") as targets_file:
        for batch in _batches(sample for _, sample in lines):
            encoded = tokenizer.backend.encode_batch([text for text, _ in batch], add_special_tokens=False)
            for (text, spans), encoding in zip(batch, encoded, strict=True):
                ids = np.array(encoding.ids, dtype)
                if kind == "wrapped":
                    ids = np.concatenate(([tokenizer.bos_id], ids, [tokenizer.eos_id])).astype(dtype)
                targets = (
                    (ids != tokenizer.pad_id).astype(np.uint8)
                    if spans is None
                    else _flags(text, encoding.offsets, spans)
                )
                ids_file.write(ids.tobytes())
                targets_file.write(targets.tobytes())
                total += len(ids)
                offsets.append(total)
        for file in (ids_file, targets_file):
            file.flush()
            os.fsync(file.fileno())
    if total == 0:
        raise RunError(
            f"{path} holds no text",
            why=f"{len(faults)} lines, none of them usable",
            remedy="give a file with one JSON object a line",
            reason=Reason.DATA_INVALID,
        )
    with open(folder / "offsets.npy", "wb") as file:
        np.save(file, np.array(offsets, np.int64))
        file.flush()
        os.fsync(file.fileno())
    named = [dataclasses.asdict(fault) for fault in faults[: jsonl.NAMED]]
    return {
        "dtype": np.dtype(dtype).name,
        "documents": len(offsets) - 1,
        "tokens": total,
        "bad_lines": len(faults),
        "named": named,
    }


def load(
    path: Path,
    kind: Kind,
    tokenizer: Tokenizer,
    *,
    fallback: Path,
    skip_bad_lines: int = 0,
    say: Callable[[str], None] = print,
) -> Shards:
    """The file's shards: reused when content and tokenizer are the same, else built now (other processes wait).

    Args:
        path: the JSONL file; shards go to ``<path>.shards/``.
        kind: how a line becomes documents.
        tokenizer: what encodes them.
        fallback: where shards go when the data's folder cannot be written.
        skip_bad_lines: bad lines tolerated.
        say: where progress is told.

    Raises:
        RunError: DATA_MISSING or DATA_INVALID with the lines.
    """
    if not path.is_file():
        raise RunError(
            f"no data file {path}",
            why="it does not exist" if not path.exists() else "it is not a regular file",
            remedy="give --data_path FILE, or put the file there",
            reason=Reason.DATA_MISSING,
        )
    content = sha256_file(path)
    name = _name(content, tokenizer, kind, skip_bad_lines)
    home = path.with_name(path.name + ".shards")
    try:
        home.mkdir(mode=0o700, exist_ok=True)
        lock = os.open(home / "lock", os.O_RDWR | os.O_CREAT, 0o600)
    except OSError:
        home = fallback
        home.mkdir(mode=0o700, parents=True, exist_ok=True)
        lock = os.open(home / "lock", os.O_RDWR | os.O_CREAT, 0o600)
    folder = home / name
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        shards = _open(folder, kind)
        if shards is None:
            say(f"tokenising {path} ({path.stat().st_size:,} bytes), once")
            for stale in home.glob(f".{name}.*.tmp"):
                shutil.rmtree(stale)
            aside = home / f".{name}.{os.getpid()}.tmp"
            aside.mkdir(mode=0o700)
            try:
                meta = {
                    "version": VERSION,
                    "kind": kind,
                    "file": content,
                    "tokenizer": tokenizer.sha256,
                    **_write(aside, path, kind, tokenizer, skip_bad_lines=skip_bad_lines),
                }
                with open(aside / "meta.json", "wb") as file:
                    file.write(to_json(meta))
                    file.flush()
                    os.fsync(file.fileno())
                fsync_dir(aside)
                if folder.exists():
                    shutil.rmtree(folder)
                aside.rename(folder)
                fsync_dir(home)
            finally:
                with contextlib.suppress(FileNotFoundError):
                    shutil.rmtree(aside)
            shards = _open(folder, kind)
    finally:
        os.close(lock)
    if shards is None:
        raise RunError(
            f"the shards in {folder} cannot be read back",
            why="their lengths are not those that were written",
            remedy="check the disk, remove that folder and start again",
            reason=Reason.DATA_INVALID,
        )
    return shards


def _name(content: str, tokenizer: Tokenizer, kind: Kind, skip_bad_lines: int) -> str:
    return f"{content[:16]}-{tokenizer.sha256[:8]}-{kind}-skip{skip_bad_lines}-v{VERSION}"


def find(path: Path, kind: Kind, tokenizer: Tokenizer, *, fallback: Path, skip_bad_lines: int = 0) -> Shards | None:
    """The shards that :func:`load` would reuse, or None; writes nothing and waits for nobody."""
    homes = [home for home in (path.with_name(path.name + ".shards"), fallback) if home.is_dir()]
    if not homes or not path.is_file():
        return None
    name = _name(sha256_file(path), tokenizer, kind, skip_bad_lines)
    return next((found for home in homes if (found := _open(home / name, kind))), None)


def _open(folder: Path, kind: Kind) -> Shards | None:
    """Published shards, or None when there are none or a file is shorter than it was."""
    try:
        meta = json.loads((folder / "meta.json").read_bytes())
        shards = Shards(
            folder=folder,
            kind=kind,
            ids=np.memmap(folder / "ids.bin", np.dtype(meta["dtype"]), mode="r"),
            targets=np.memmap(folder / "targets.bin", np.uint8, mode="r"),
            offsets=np.load(folder / "offsets.npy", mmap_mode="r"),
            meta=meta,
        )
    except (OSError, ValueError, KeyError, TypeError):
        return None
    whole = len(shards.ids) == len(shards.targets) == meta["tokens"] and len(shards.offsets) == meta["documents"] + 1
    return shards if whole else None
