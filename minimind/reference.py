"""Log-probabilities of answers under frozen weights: computed once for a data set and kept beside its shards.

Epochs, resumed runs and sweeps over beta or the learning rate read them instead of running the reference model again.
"""

from __future__ import annotations

import hashlib
import io
import json
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from minimind.batches import Batch, Reader
from minimind.dist import World
from minimind.durable import publish

SAMPLES = 8
"""Samples of one pass. Fixed, so that neither the world size nor a resume changes a bit of the result."""
VERSION = 2

LogProbs = Callable[[Batch], torch.Tensor]
"""A batch on the device -> (documents,) summed log-probabilities of each document's answer."""


def key(facts: Mapping[str, Any]) -> str:
    """Names what the numbers depend on: weights, shape, cut, how and where they were computed."""
    return hashlib.sha256(json.dumps({"version": VERSION, **facts}, sort_keys=True, default=str).encode()).hexdigest()


def fingerprint(model: nn.Module) -> str:
    """sha256 of a model's weights as they are in memory, whatever file or seed they came from."""
    total = hashlib.sha256()
    for name, value in sorted(model.state_dict().items()):
        total.update(f"{name} {value.dtype} {tuple(value.shape)}\n".encode())
        total.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return total.hexdigest()


def load_or_compute(
    log_probs: LogProbs, reader: Reader, ranks: World, *, facts: Mapping[str, Any], say: Callable[[str], None]
) -> np.ndarray:
    """The sums of every document of the data, (documents,) in fp32, in the order of the shards; the same on every rank.

    Documents of samples that are left out stay 0.
    """
    path = reader.shards.folder / f"reference-{key(facts)[:16]}.npy"
    documents = len(reader.lengths)
    kept = _read(path, documents) if ranks.leader else None
    if ranks.sum([float(kept is not None)])[0]:
        say("reference log-probabilities: found beside the data")
        return _from_leader(kept, documents, ranks)
    began = time.perf_counter()
    found = torch.zeros(documents, dtype=torch.float32, device=ranks.device)
    with torch.inference_mode():
        for first in range(ranks.rank * SAMPLES, len(reader.usable), ranks.size * SAMPLES):
            for batch in reader.batches(np.arange(first, min(first + SAMPLES, len(reader.usable)))):
                found[torch.from_numpy(batch.numbers).to(ranks.device)] = log_probs(batch.to(ranks.device))
    ranks.sum_tensor(found)  # each document has one rank's value and zeros
    sums = found.cpu().numpy()
    say(f"reference log-probabilities: {documents:,} answers in {time.perf_counter() - began:.1f} s")
    if ranks.leader:
        _keep(path, sums, say)
    return sums


def _from_leader(kept: np.ndarray | None, documents: int, ranks: World) -> np.ndarray:
    values = torch.zeros(documents) if kept is None else torch.from_numpy(kept)
    return np.asarray(ranks.sum_tensor(values.to(ranks.device)).cpu())


def _read(path: Path, documents: int) -> np.ndarray | None:
    try:
        sums = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError):
        return None
    whole = sums.shape == (documents,) and sums.dtype == np.float32 and np.isfinite(sums).all()
    return sums if whole else None


def _keep(path: Path, sums: np.ndarray, say: Callable[[str], None]) -> None:
    if not np.isfinite(sums).all():
        return
    data = io.BytesIO()
    np.save(data, sums)
    try:
        publish(path, data.getvalue())
    except OSError as error:
        say(f"warning: the reference log-probabilities are not kept: {error}")
