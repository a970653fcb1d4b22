"""JSONL tokenised once into memory-mapped arrays, built under a lock and published by rename.

A shard folder holds ``ids.bin`` (uint16; uint32 for large vocabularies), ``targets.bin`` (uint8: TARGET, IN_TAG),
``offsets.bin`` (int64, documents + 1), ``counts.bin`` (int32, targets of each document), ``lines.bin`` (int64, where
each sample stands in the file), ``meta.json`` and ``in-use``, which readers lock. Texts are kept whole;
``max_seq_len`` cuts at reading.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shutil
import weakref
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from minimind import jsonl, tokenise
from minimind.catalog import StageInfo
from minimind.documents import DOCS_PER_SAMPLE as DOCS_PER_SAMPLE
from minimind.documents import IN_TAG as IN_TAG
from minimind.documents import KEPT_CHARS
from minimind.documents import TAGS as TAGS
from minimind.documents import TARGET as TARGET
from minimind.documents import Kind as Kind
from minimind.documents import Rendering as Rendering
from minimind.durable import fsync_dir, publish, to_json
from minimind.rundir import Reason, RunError
from minimind.shard_folder import Unwritable, content_hash, identity_of, locked, prune
from minimind.tokenizer import Tokenizer

VERSION = 5


@dataclass(frozen=True, kw_only=True)
class Shards:
    """Tokenised documents, in the file's order; a pair's chosen and rejected are neighbours."""

    folder: Path
    kind: Kind
    ids: np.ndarray = field(repr=False)  # (tokens,)
    targets: np.ndarray = field(repr=False)  # (tokens,) TARGET where the token counts, with IN_TAG inside a whole tag
    offsets: np.ndarray = field(repr=False)  # (documents + 1,)
    counts: np.ndarray = field(repr=False)  # (documents,) targets, the first token never being one
    lines: np.ndarray = field(repr=False)  # (samples,) number of each sample's line in the file, from 1
    meta: Mapping[str, Any] = field(repr=False)
    _counted: dict[int, np.ndarray] = field(default_factory=dict, repr=False, compare=False)

    @property
    def samples(self) -> int:
        """Lines of the file that hold a sample."""
        return (len(self.offsets) - 1) // DOCS_PER_SAMPLE[self.kind]

    def lengths(self, max_seq_len: int) -> np.ndarray:
        """Tokens of each document after the cut, (documents,)."""
        lengths: np.ndarray = np.minimum(np.diff(self.offsets), max_seq_len)
        return lengths

    def target_counts(self, max_seq_len: int) -> np.ndarray:
        """Targets of each document after the cut, (documents,): its first token is never one, nothing predicts it.

        Only documents that are cut, and in which not everything is a target, are looked into, and once.
        """
        if max_seq_len not in self._counted:
            whole = np.diff(self.offsets)
            counts = self.counts.astype(np.int64)
            everything = counts == whole - 1
            long = whole > max_seq_len
            counts[long & everything] = max_seq_len - 1
            flags, starts = np.asarray(self.targets), np.asarray(self.offsets)  # a memmap's own indexing is slow
            for document in np.flatnonzero(long & ~everything):
                start = starts[document]
                counts[document] = np.count_nonzero(flags[start + 1 : start + max_seq_len] & TARGET)
            counts.setflags(write=False)
            self._counted[max_seq_len] = counts
        return self._counted[max_seq_len]

    def cut(self, max_seq_len: int) -> dict[str, int]:
        """How much the cut to ``max_seq_len`` takes away: documents, tokens."""
        lengths = np.diff(self.offsets)
        long = lengths > max_seq_len
        return {"documents": int(long.sum()), "tokens": int((lengths[long] - max_seq_len).sum())}

    def remarks(self, name: str, max_seq_len: int) -> list[str]:
        """What of the file ``name`` is not learned from, a line each, with the first places; empty where all is."""
        cut = self.cut(max_seq_len)
        per_sample = DOCS_PER_SAMPLE[self.kind]
        none = (np.asarray(self.counts).reshape(-1, per_sample) == 0).any(1)
        gone = (self.target_counts(max_seq_len).reshape(-1, per_sample) == 0).any(1) & ~none
        told = []
        if cut["documents"]:
            told.append(
                f"{cut['documents']:,} texts are longer than {max_seq_len} tokens; {cut['tokens']:,} tokens are cut"
            )
        for which, why in (
            (none, "have no answer" if self.kind in ("chat", "pair") else "are too short to predict anything"),
            (gone, f"have an answer that begins only behind the first {max_seq_len} tokens"),
        ):
            if which.any():
                places = ", ".join(f"{name}:{line}" for line in self.lines[np.flatnonzero(which)[:3]])
                more = ", …" if which.sum() > 3 else ""
                told.append(f"{which.sum():,} samples {why} and add nothing: {places}{more}")
        if self.meta["shortened"]:
            told.append(
                f"{self.meta['shortened']:,} texts are longer than {KEPT_CHARS:,} characters; the rest is not read"
            )
        faults = jsonl.Faults(
            bad=self.meta["bad_lines"],
            blank=self.meta["blank_lines"],
            named=[jsonl.Fault(**fault) for fault in self.meta["named"]],
        )
        if faults.bad or faults.blank:
            told.append(faults.told(name))
        return told


def kind_for(info: StageInfo, arch: str) -> Kind:
    """How a stage reads its lines: minimind3 puts a raw text between bos and eos."""
    if info.line == "text":
        return "wrapped" if arch == "minimind3" else "text"
    return "pair" if info.line == "pair" else "chat"


def load(
    path: Path,
    kind: Kind,
    tokenizer: Tokenizer,
    *,
    fallback: Path,
    skip_bad_lines: int = 0,
    rendering: Rendering | None = None,
    say: Callable[[str], None] = print,
) -> Shards:
    """The file's shards: reused when content and tokenizer are the same, else built now (other processes wait).

    Args:
        path: the JSONL file; shards go to ``<path>.shards/``.
        kind: how a line becomes documents.
        tokenizer: what encodes them.
        fallback: where shards go when the data's folder cannot be written.
        skip_bad_lines: bad lines tolerated.
        rendering: random changes to conversations; by default none.
        say: where progress is told.

    Raises:
        RunError: DATA_MISSING, DATA_INVALID with the lines, DISK_FULL, OOM_KILLED.
    """
    rendering = rendering or Rendering()
    if not path.is_file():
        raise RunError(
            f"no data file {path}",
            why="it does not exist" if not path.exists() else "it is not a regular file",
            remedy="give --data_path FILE, or put the file there",
            reason=Reason.DATA_MISSING,
        )
    own = path.with_name(path.name + ".shards")
    ending = _ending(tokenizer, kind, rendering, skip_bad_lines)
    try:
        with locked(own, say):
            return _reuse_or_build(
                own,
                ending,
                path,
                kind,
                tokenizer,
                rendering=rendering,
                skip_bad_lines=skip_bad_lines,
                say=say,
                mine=True,
            )
    except Unwritable:
        content = content_hash(path, own, fallback, identity=identity_of(path))
        ready = _open(own / f"{content[:16]}-{ending}", kind)  # a read-only disk may hold finished ones
        if ready is not None:
            return ready
    try:
        with locked(fallback, say):
            return _reuse_or_build(
                fallback, ending, path, kind, tokenizer, rendering=rendering, skip_bad_lines=skip_bad_lines, say=say
            )
    except Unwritable as error:
        raise RunError(
            f"the tokens of {path} cannot be kept anywhere",
            why=f"{own} and {fallback} cannot be written: {error.__cause__}",
            remedy="make one of them writable, or put the data on another disk",
            reason=Reason.DATA_MISSING,
        ) from error


def find(
    path: Path,
    kind: Kind,
    tokenizer: Tokenizer,
    *,
    fallback: Path,
    skip_bad_lines: int = 0,
    rendering: Rendering | None = None,
) -> Shards | None:
    """The shards that :func:`load` would reuse, or None; writes nothing and waits for nobody."""
    homes = [home for home in (path.with_name(path.name + ".shards"), fallback) if home.is_dir()]
    if not homes or not path.is_file():
        return None
    content = content_hash(path, *homes, identity=identity_of(path), remember=False)
    name = f"{content[:16]}-{_ending(tokenizer, kind, rendering or Rendering(), skip_bad_lines)}"
    return next((found for home in homes if (found := _open(home / name, kind))), None)


def _ending(tokenizer: Tokenizer, kind: Kind, rendering: Rendering, skip_bad_lines: int) -> str:
    drawn = rendering.key if kind in ("chat", "pair") else ""
    return f"{tokenizer.sha256[:8]}-{kind}{drawn}-skip{skip_bad_lines}-v{VERSION}"


def _reuse_or_build(
    home: Path,
    ending: str,
    path: Path,
    kind: Kind,
    tokenizer: Tokenizer,
    *,
    rendering: Rendering,
    skip_bad_lines: int,
    say: Callable[[str], None],
    mine: bool = False,
) -> Shards:
    """Under the lock of ``home``; ``mine``: no other file's shards lie there, so those of older contents can go."""
    for stale in home.glob(".*.tmp"):  # whoever made it died: it would hold the lock
        shutil.rmtree(stale, ignore_errors=True)
    before = identity_of(path)
    content = content_hash(path, home, identity=before)
    folder = home / f"{content[:16]}-{ending}"
    shards = _open(folder, kind)
    if shards is not None:
        return shards
    say(f"tokenising {path} ({path.stat().st_size:,} bytes), once")
    if mine:
        prune(home, lambda name: name.startswith(content[:16]) and name.endswith(f"-v{VERSION}"), say)
    aside = home / f".{folder.name}.{os.getpid()}.tmp"
    try:
        aside.mkdir(mode=0o700)
        arrays = tokenise.write(
            aside, path, kind, tokenizer, rendering=rendering, skip_bad_lines=skip_bad_lines, say=say
        )
        if identity_of(path) != before:
            raise RunError(
                f"{path} changed while it was tokenised",
                why="its size or its times are others than when it was begun",
                remedy="run the same command again when nothing writes to the file any more",
                reason=Reason.DATA_INVALID,
            )
        publish(aside / "in-use", b"")
        meta = {"version": VERSION, "kind": kind, "file": content, "tokenizer": tokenizer.sha256, **arrays}
        publish(aside / "meta.json", to_json(meta))
        if folder.exists():
            shutil.rmtree(folder)
        aside.rename(folder)
        fsync_dir(home)
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    shards = _open(folder, kind)
    if shards is None:
        raise RunError(
            f"the shards in {folder} cannot be read back",
            why="their lengths are not those that were written",
            remedy="check the disk, remove that folder and start again",
            reason=Reason.DATA_INVALID,
        )
    return shards


def _open(folder: Path, kind: Kind) -> Shards | None:
    """Published shards, or None when there are none or a file is shorter than it was."""
    try:
        meta = json.loads((folder / "meta.json").read_bytes())
        types = {"ids": np.dtype(meta["dtype"]), **tokenise.ARRAYS}
        arrays = {name: np.memmap(folder / f"{name}.bin", types[name], mode="r") for name in types}
        documents, tokens = meta["documents"], meta["tokens"]
        lengths = {
            "ids": tokens,
            "targets": tokens,
            "offsets": documents + 1,
            "counts": documents,
            "lines": documents // DOCS_PER_SAMPLE[kind],
        }
        reader = os.open(folder / "in-use", os.O_RDONLY)
    except (OSError, ValueError, KeyError, TypeError):
        return None
    if any(len(arrays[name]) != length for name, length in lengths.items()):
        os.close(reader)
        return None
    with contextlib.suppress(OSError):  # where there are no locks nobody prunes either
        fcntl.flock(reader, fcntl.LOCK_SH)
    shards = Shards(folder=folder, kind=kind, meta=meta, **arrays)
    weakref.finalize(shards, os.close, reader)  # until then this process counts as a reader
    return shards
