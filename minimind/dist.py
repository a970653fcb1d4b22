"""Ranks: the process group, the wrapped model, sums over ranks. One process without torchrun is a world of one.

With ``fsdp`` each rank keeps a shard of parameters, gradients and optimiser state (FSDP2, ``fully_shard``). What leaves
this module is whole again: checkpoints and exports have one format, whoever wrote them.
"""

from __future__ import annotations

import contextlib
import datetime
import os
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from minimind.rundir import Reason, RunError

TIMEOUT_S = 1800.0
"""How long a collective may wait where nobody watches: the ranks are on several machines."""
WATCHED_TIMEOUTS = 40.0
"""Where ranks are watched, a collective outlasts everything that another rank may take (:mod:`minimind.pulse`)."""

_until_exit: list[Any] = []
"""What must not be freed before the process ends: a gloo group's destructor holds the interpreter's lock while it joins
a thread that may be waiting for that very lock, and the rank would never leave."""


@dataclass(frozen=True, kw_only=True)
class World:
    """Who this process is among the ranks, and where it computes."""

    rank: int
    size: int
    local_rank: int
    device: torch.device
    parallel: str = "ddp"

    @property
    def sharded(self) -> bool:
        """Whether each rank holds a part of the model only."""
        return self.size > 1 and self.parallel == "fsdp"

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

    def largest(self, own: int) -> int:
        """The largest of the ranks' numbers, on every rank."""
        if self.size == 1:
            return own
        tensor = torch.tensor(own, device=self.device)
        dist.all_reduce(tensor, dist.ReduceOp.MAX)
        return int(tensor)

    def gather(self, own: list[int]) -> list[int]:
        """Every rank's numbers, one after the other, on every rank."""
        if self.size == 1:
            return own
        boxes: list[Any] = [None] * self.size
        dist.all_gather_object(boxes, own)
        return [number for box in boxes for number in box]

    def shard(self, model: nn.Module, blocks: nn.ModuleList) -> None:
        """With fsdp, leave each rank its part of every block and of the rest, in place; before the optimiser exists."""
        if not self.sharded:
            return
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.fsdp import fully_shard

        mesh = init_device_mesh(self.device.type, (self.size,))
        for module in (*blocks, model):
            fully_shard(module, mesh=mesh)
        _until_exit.append((mesh, model))

    def wrap(self, model: nn.Module) -> nn.Module:
        """Synchronise the trainable parameters' gradients, if there is anybody to synchronise with."""
        if self.size == 1 or self.sharded:
            return model
        ids = [self.device.index] if self.device.type == "cuda" else None
        wrapped = DistributedDataParallel(model, device_ids=ids, gradient_as_bucket_view=True)
        _until_exit.append(wrapped)
        return wrapped

    def unsynchronised(self, model: nn.Module) -> AbstractContextManager[None]:
        """Gradients stay on this rank: for every pass of a step but the last."""
        if self.sharded:
            return _unsynchronised_shards(model)
        return model.no_sync() if isinstance(model, DistributedDataParallel) else contextlib.nullcontext()

    def whole(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Tensors without their sharding; every rank takes part."""
        return {name: tensor.full_tensor() if self.sharded else tensor for name, tensor in tensors.items()}

    def norm(self, clipped: Tensor) -> float:
        """The gradient norm that ``clip_grad_norm_`` returned, of all shards."""
        return float(clipped.full_tensor() if self.sharded else clipped)


@contextlib.contextmanager
def _unsynchronised_shards(model: Any) -> Iterator[None]:
    model.set_requires_gradient_sync(False)
    try:
        yield
    finally:
        model.set_requires_gradient_sync(True)


def whole_state(
    ranks: World, parameters: Mapping[str, nn.Parameter], model: nn.Module, optimizer: torch.optim.Optimizer
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Parameters and optimiser state as one process would have them; with fsdp on rank 0 only, empty elsewhere.

    With fsdp every rank takes part, and rank 0 gets the parts in main memory.
    """
    if not ranks.sharded:
        return {name: parameter.detach() for name, parameter in parameters.items()}, optimizer.state_dict()
    from torch.distributed.checkpoint.state_dict import StateDictOptions, get_state_dict

    options = StateDictOptions(full_state_dict=True, cpu_offload=True, ignore_frozen_params=True)
    weights, named = get_state_dict(model, optimizer, options=options)
    if not ranks.leader:
        return {}, {}
    numbers = {name: number for number, name in enumerate(parameters)}
    groups = [{**group, "params": [numbers[n] for n in group["params"]]} for group in named["param_groups"]]
    states = {numbers[name]: state for name, state in named["state"].items()}
    return {name: weights[name] for name in parameters}, {"state": states, "param_groups": groups}


def load_whole_state(
    ranks: World,
    own: Mapping[str, nn.Parameter],
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    *,
    parameters: Mapping[str, Tensor],
    state: Mapping[str, Any],
) -> None:
    """Take over what :func:`whole_state` gave, on any number of ranks, sharded or not; each rank has read all of it."""
    if not ranks.sharded:
        with torch.no_grad():
            for name, parameter in own.items():
                parameter.copy_(parameters[name])
        optimizer.load_state_dict(dict(state))
        return
    from torch.distributed.checkpoint.state_dict import StateDictOptions, set_model_state_dict, set_optimizer_state_dict

    set_model_state_dict(
        model, dict(parameters), options=StateDictOptions(full_state_dict=True, cpu_offload=True, strict=False)
    )
    names = list(own)
    groups = [{**group, "params": [names[i] for i in group["params"]]} for group in state["param_groups"]]
    named: dict[str, Any] = {"state": {names[i]: one for i, one in state["state"].items()}, "param_groups": groups}
    options = StateDictOptions(full_state_dict=True, cpu_offload=False)
    set_optimizer_state_dict(model, optimizer, named, options=options)


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
def world(device: str, *, parallel: str = "ddp", hang_timeout_s: float = 0.0) -> Iterator[World]:
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
    watched = int(os.environ.get("LOCAL_WORLD_SIZE", size)) == size
    timeout_s = WATCHED_TIMEOUTS * (hang_timeout_s or TIMEOUT_S) if watched else TIMEOUT_S
    dist.init_process_group(backend, timeout=datetime.timedelta(seconds=max(TIMEOUT_S, timeout_s)))
    _until_exit.append(dist.group.WORLD)
    yield World(rank=rank, size=size, local_rank=local_rank, device=chosen, parallel=parallel)
    dist.destroy_process_group()  # not after an error: it would wait for a rank that may be gone, and the process ends
