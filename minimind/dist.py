"""Ranks: the process group, the wrapped model, sums over ranks. One process without torchrun is a world of one."""

from __future__ import annotations

import contextlib
import datetime
import os
from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from minimind.rundir import Reason, RunError

TIMEOUT_S = 1800


@dataclass(frozen=True, kw_only=True)
class World:
    """Who this process is among the ranks, and where it computes."""

    rank: int
    size: int
    local_rank: int
    device: torch.device

    @property
    def leader(self) -> bool:
        """True on rank 0, which alone writes."""
        return self.rank == 0

    def sum(self, values: list[float]) -> list[float]:
        """Sums over ranks, in fp64, the same on every rank."""
        if self.size == 1:
            return values
        tensor = torch.tensor(values, dtype=torch.float64, device=self.device)
        dist.all_reduce(tensor)
        return list(tensor.tolist())

    def sum_tensor(self, tensor: Tensor) -> Tensor:
        """The tensor, summed over ranks in place."""
        if self.size > 1:
            dist.all_reduce(tensor)
        return tensor

    def share(self, text: str) -> str:
        """Rank 0's text, on every rank."""
        box = [text]
        if self.size > 1:
            dist.broadcast_object_list(box, src=0, device=self.device)
        return box[0]

    def barrier(self) -> None:
        """Wait until every rank is here."""
        if self.size > 1:
            self.sum([0.0])

    def wrap(self, model: nn.Module) -> nn.Module:
        """Synchronise the trainable parameters' gradients, if there is anybody to synchronise with."""
        if self.size == 1:
            return model
        ids = [self.device.index] if self.device.type == "cuda" else None
        return DistributedDataParallel(model, device_ids=ids, gradient_as_bucket_view=True)

    def unsynchronised(self, model: nn.Module) -> AbstractContextManager[None]:
        """Gradients stay on this rank: for every pass of a step but the last."""
        return model.no_sync() if isinstance(model, DistributedDataParallel) else contextlib.nullcontext()


def pick_device(asked: str, local_rank: int) -> torch.device:
    """``auto`` is a GPU where there is one; ``cuda`` is this rank's own.

    Raises:
        RunError: when a GPU is asked for and there is none.
    """
    if asked == "cpu" or (asked == "auto" and not torch.cuda.is_available()):
        return torch.device("cpu")
    if not torch.cuda.is_available():
        raise RunError(
            f"--device {asked} is not there",
            why=f"torch {torch.__version__} sees no CUDA device",
            remedy="use --device auto or cpu, or check nvidia-smi and that the environment has the CUDA build",
            reason=Reason.ENV_MISMATCH,
        )
    index = int(asked.partition(":")[2] or local_rank) if asked != "auto" else local_rank
    if index >= torch.cuda.device_count():
        raise RunError(
            f"rank {local_rank} has no GPU of its own",
            why=f"this host has {torch.cuda.device_count()} GPUs",
            remedy="start no more ranks than GPUs (--nproc)",
            reason=Reason.ENV_MISMATCH,
        )
    return torch.device("cuda", index)


@contextlib.contextmanager
def world(device: str) -> Iterator[World]:
    """Join torchrun's process group (nccl on GPUs, gloo on CPUs), or be alone; leave it at the end."""
    size, rank = int(os.environ.get("WORLD_SIZE", "1")), int(os.environ.get("RANK", "0"))
    local_rank = int(os.environ.get("LOCAL_RANK", "0"))
    chosen = pick_device(device if size == 1 else device.partition(":")[0], local_rank)
    if chosen.type == "cuda":
        torch.cuda.set_device(chosen)
    if size == 1:
        yield World(rank=0, size=1, local_rank=local_rank, device=chosen)
        return
    backend = "nccl" if chosen.type == "cuda" else "gloo"
    dist.init_process_group(backend, timeout=datetime.timedelta(seconds=TIMEOUT_S))
    try:
        yield World(rank=rank, size=size, local_rank=local_rank, device=chosen)
    finally:
        dist.destroy_process_group()
