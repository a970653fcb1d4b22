"""A JSONL file to arrays on disk, on all cores, in memory that does not grow with the file.

Small files are tokenised here by the tokenizers library's own threads. For larger ones parsing and rendering would keep
one core busy while the others wait, so whole chunks of lines go to worker processes; their results come back in order.
"""

from __future__ import annotations

import collections
import concurrent.futures
import contextlib
import multiprocessing
import os
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

import numpy as np

from minimind import jsonl, tokenizer
from minimind.documents import Encoded, Encoder, Kind, Rendering
from minimind.durable import is_disk_full
from minimind.process import PR_SET_PDEATHSIG, cores, prctl
from minimind.rundir import Reason, RunError
from minimind.tokenizer import Tokenizer

CHUNK_BYTES = 512 << 10
BYTES_PER_WORKER = 4 << 20
"""A worker costs half a second to start: what is smaller is tokenised without one."""
MOST_WORKERS = 32
SAID_EVERY_S = 10.0
ARRAYS = {"targets": np.uint8, "offsets": np.int64, "counts": np.int32, "lines": np.int64}
"""Files of a shard folder and their types; ``ids`` has the type that its vocabulary needs."""


def write(
    folder: Path,
    path: Path,
    kind: Kind,
    words: Tokenizer,
    *,
    rendering: Rendering,
    skip_bad_lines: int,
    say: Callable[[str], None],
) -> dict[str, Any]:
    """Tokenise a file into ``folder``; returns what its meta.json says about the arrays.

    Raises:
        RunError: DATA_INVALID for bad lines or no usable one, DISK_FULL, OOM_KILLED.
    """
    total_bytes = path.stat().st_size
    encoder = Encoder(words, kind, rendering)
    faults = jsonl.Faults()
    told = _Progress(path.name, total_bytes, say)
    tokens = documents = 0
    try:
        with contextlib.ExitStack() as stack:
            files = {name: stack.enter_context(open(folder / f"{name}.bin", "wb")) for name in ("ids", *ARRAYS)}
            files["offsets"].write(np.zeros(1, np.int64).tobytes())
            stack.enter_context(jsonl.readable(path))
            encoded_chunks = stack.enter_context(contextlib.closing(_encoded(path, total_bytes, encoder)))
            for read_bytes, read_lines, encoded in encoded_chunks:
                faults.add(encoded.faults)
                if faults.bad > skip_bad_lines:  # it will be refused: the rest is only counted
                    if faults.bad >= jsonl.COUNTED:
                        break
                    continue
                files["ids"].write(encoded.ids.tobytes())
                files["targets"].write(encoded.targets.tobytes())
                files["offsets"].write((tokens + np.cumsum(encoded.lengths)).tobytes())
                files["counts"].write(encoded.counts.tobytes())
                files["lines"].write(encoded.lines.tobytes())
                tokens += len(encoded.ids)
                documents += len(encoded.lengths)
                told.at(read_bytes, read_lines)
            for file in files.values():
                file.flush()
                os.fsync(file.fileno())
    except OSError as error:
        if not is_disk_full(error):
            raise
        raise _full(folder, told) from error
    except BrokenProcessPool as error:
        raise RunError(
            f"a process that tokenised {path} was killed",
            why="nothing but the system ends them, most likely for lack of memory",
            remedy="run the same command again with less beside it, or on a machine with more memory",
            reason=Reason.OOM_KILLED,
        ) from error
    faults.refuse(path, skip_bad_lines=skip_bad_lines)
    if tokens == 0:
        raise RunError(
            f"{path} holds no text",
            why=f"{faults.bad + faults.blank} lines, none of them usable",
            remedy="give a file with one JSON object a line",
            reason=Reason.DATA_INVALID,
        )
    return {
        "dtype": np.dtype(encoder.dtype).name,
        "documents": documents,
        "tokens": tokens,
        "bad_lines": faults.bad,
        "blank_lines": faults.blank,
        "shortened": faults.shortened,
        "named": [{"line": fault.line, "why": fault.why} for fault in faults.named],
    }


class _Progress:
    """Says every ten seconds how far it is, how fast, and how long it will take."""

    def __init__(self, name: str, total_bytes: int, say: Callable[[str], None]) -> None:
        self.name, self.total_bytes, self.say = name, total_bytes, say
        self.began = self.told = time.monotonic()
        self.bytes = 0

    def at(self, read_bytes: int, read_lines: int) -> None:
        self.bytes = read_bytes
        now = time.monotonic()
        if now - self.told < SAID_EVERY_S:
            return
        self.told = now
        seconds = now - self.began
        rate = read_bytes / seconds
        self.say(
            f"tokenising {self.name}: {read_bytes / max(1, self.total_bytes):.0%}, {read_lines / seconds:,.0f} lines/s,"
            f" {rate / 1e6:.1f} MB/s, about {(self.total_bytes - read_bytes) / rate:,.0f} s left"
        )


def _full(folder: Path, told: _Progress) -> RunError:
    written = sum(file.stat().st_size for file in folder.iterdir())
    free = shutil.disk_usage(folder).free
    needed = written * told.total_bytes / told.bytes if told.bytes else 1.5 * told.total_bytes
    return RunError(
        f"the disk became full while {told.name} was tokenised",
        why=f"{folder.parent} has {(free + written) / 1e6:,.1f} MB free, the tokens need about {needed / 1e6:,.1f} MB",
        remedy="free space there, or put the data on another disk; the same command begins again",
        reason=Reason.DISK_FULL,
    )


def _encoded(path: Path, total_bytes: int, encoder: Encoder) -> Iterator[tuple[int, int, Encoded]]:
    """The file's chunks in order: bytes read so far, lines read so far, tokens."""
    chunks = _chunks(path)
    workers = min(cores(), MOST_WORKERS, total_bytes // BYTES_PER_WORKER)
    pool = _pool(workers, encoder) if workers > 1 else None
    if pool is None:
        for read_bytes, first, lines in chunks:
            yield read_bytes, first + len(lines) - 1, encoder.encode(first, lines)
        return
    ahead: collections.deque[tuple[int, int, concurrent.futures.Future[Encoded]]] = collections.deque()
    try:
        for read_bytes, first, lines in chunks:
            ahead.append((read_bytes, first + len(lines) - 1, pool.submit(_work, first, lines)))
            if len(ahead) > workers + 1:  # bounded: what waits lies in memory
                read, count, future = ahead.popleft()
                yield read, count, future.result()
        for read, count, future in ahead:
            yield read, count, future.result()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _chunks(path: Path) -> Iterator[tuple[int, int, list[bytes]]]:
    """Bytes read so far, the number of the first line, and consecutive lines of about ``CHUNK_BYTES``."""
    chunk: list[bytes] = []
    chunk_bytes = read_bytes = 0
    first = 1
    for number, raw in jsonl.raw_lines(path):
        chunk.append(raw)
        chunk_bytes += len(raw)
        read_bytes += len(raw)
        if chunk_bytes >= CHUNK_BYTES:
            yield read_bytes, first, chunk
            chunk, chunk_bytes, first = [], 0, number + 1
    if chunk:
        yield read_bytes, first, chunk


def _pool(workers: int, encoder: Encoder) -> concurrent.futures.ProcessPoolExecutor | None:
    """Worker processes, started afresh: a fork beside torch's threads may hang. None where none can start."""
    words = encoder.tokenizer
    try:
        return concurrent.futures.ProcessPoolExecutor(
            workers,
            mp_context=multiprocessing.get_context("spawn"),
            initializer=_begin,
            initargs=(os.getpid(), words.folder, encoder.kind, encoder.rendering),
        )
    except (OSError, ImportError):  # no semaphores: /dev/shm is missing or read-only
        return None


_encoder: Encoder  # a worker's own, made by its start


def _begin(parent: int, folder: Path, kind: Kind, rendering: Rendering) -> None:
    """A worker's start: it dies with its parent, and leaves Ctrl-C and the other cores to it."""
    global _encoder
    prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    _encoder = Encoder(tokenizer.load(folder), kind, rendering, alone=True)


def _work(first: int, lines: list[bytes]) -> Encoded:
    return _encoder.encode(first, lines)
