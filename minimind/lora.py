"""Low-rank adapters on the square linears (q_proj, o_proj): y = Wx + B(Ax); Hu et al. 2021 without its scaling."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from minimind.checkpoint import read_tensors
from minimind.rundir import Reason, RunError

KEY = ".lora."


class Lora(nn.Module):
    """B(Ax) with A ~ N(0, 0.02) and B = 0, so that a new adapter changes nothing."""

    def __init__(self, in_features: int, out_features: int, rank: int) -> None:
        super().__init__()
        self.A = nn.Linear(in_features, rank, bias=False)
        self.B = nn.Linear(rank, out_features, bias=False)
        nn.init.normal_(self.A.weight, std=0.02)
        nn.init.zeros_(self.B.weight)

    def forward(self, x: Tensor) -> Tensor:
        """(..., in) -> (..., out)."""
        out: Tensor = self.B(self.A(x))
        return out


class LoraLinear(nn.Linear):
    """A linear layer with an adapter; keys of its own weight stay where they were."""

    def __init__(self, base: nn.Linear, rank: int) -> None:
        nn.Module.__init__(self)
        self.in_features, self.out_features = base.in_features, base.out_features
        self.weight = base.weight
        self.register_parameter("bias", None)
        self.lora = Lora(base.in_features, base.out_features, rank)

    def forward(self, input: Tensor) -> Tensor:
        """(..., in) -> (..., out)."""
        out: Tensor = super().forward(input) + self.lora(input)
        return out


def inject(model: nn.Module, *, rank: int) -> None:
    """Give every square linear an adapter and freeze everything else."""
    model.requires_grad_(False)
    square = [
        (parent, name, child)
        for parent in model.modules()
        for name, child in parent.named_children()
        if type(child) is nn.Linear and child.in_features == child.out_features
    ]
    for parent, name, child in square:
        setattr(parent, name, LoraLinear(child, rank))


def adapter_state(model: nn.Module) -> dict[str, Tensor]:
    """The adapters alone, under MiniMind's keys."""
    return {name: value for name, value in model.state_dict().items() if KEY in name}


def apply(model: nn.Module, adapter_path: Path | str) -> None:
    """Inject the adapters of a file (fp16 or fp32, any rank) into a model, in place.

    Raises:
        RunError: when the file is missing, is no adapter, or is one of another model.
    """
    path = Path(adapter_path)
    # later versions of the original write the adapters of a compiled or wrapped model
    state = {
        name.removeprefix("_orig_mod.").removeprefix("module."): value for name, value in read_tensors(path).items()
    }
    ranks = {value.shape[0] for name, value in state.items() if name.endswith("lora.A.weight")}
    if len(ranks) != 1:
        raise RunError(
            f"{path} is no adapter of MiniMind's form",
            why="it has no keys `….lora.A.weight`" if not ranks else f"its ranks differ: {sorted(ranks)}",
            remedy="give a file such as out/lora/lora_identity_512.pth; whole models go to --from_weight",
            reason=Reason.DATA_INVALID,
        )
    inject(model, rank=ranks.pop())
    own = adapter_state(model)
    wrong = sorted(set(own) ^ set(state)) or [n for n in own if own[n].shape != state[n].shape]
    if wrong:
        raise RunError(
            f"{path} is an adapter of another model",
            why=f"{wrong[0]} differs, and {len(wrong) - 1} more",
            remedy="use it with the weights that it was trained on",
            reason=Reason.DATA_INVALID,
        )
    device = next(model.parameters()).device
    with torch.no_grad():
        for name, value in own.items():
            value.copy_(state[name].to(value))
    model.to(device)


def merge(model: nn.Module) -> None:
    """Fold the adapters into the weights, W + BA, in place; the model has its original keys again."""
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, LoraLinear):
                plain = nn.Linear(child.in_features, child.out_features, bias=False)
                merged = child.weight.detach() + child.lora.B.weight.detach() @ child.lora.A.weight.detach()
                plain.weight = nn.Parameter(merged)
                setattr(parent, name, plain)
