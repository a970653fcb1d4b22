"""Low-rank adapters: y = Wx + B(Ax); Hu et al. 2021 without its scaling. By default on q_proj and o_proj.

Several adapters on one model add up: their A are stacked and their B stand side by side, so that a layer with two of
rank r has one of rank 2r, under the same keys.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from minimind.catalog import weights_file
from minimind.config import LORA_TARGETS
from minimind.rundir import Reason, RunError
from minimind.weights import read_tensors, sidecar_of

KEY = ".lora."
SQUARE, ALL = "square", "all"


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

    def __init__(self, base: nn.Linear, adapter: Lora) -> None:
        nn.Module.__init__(self)
        self.in_features, self.out_features = base.in_features, base.out_features
        self.weight = base.weight
        self.register_parameter("bias", None)
        self.lora = adapter

    def forward(self, input: Tensor) -> Tensor:
        """(..., in) -> (..., out)."""
        out: Tensor = super().forward(input) + self.lora(input)
        return out


@dataclass(frozen=True, kw_only=True)
class Adapter:
    """One adapter file as read: for each layer's path A (rank, in) and B (out, rank)."""

    path: Path
    pairs: dict[str, tuple[Tensor, Tensor]]

    def __str__(self) -> str:
        dtypes = sorted({str(tensor.dtype).removeprefix("torch.") for pair in self.pairs.values() for tensor in pair})
        ranks = sorted({len(a) for a, _ in self.pairs.values()})
        targets = dict.fromkeys(name.rpartition(".")[2] for name in self.pairs)
        return f"{self.path}: rank {', '.join(map(str, ranks))} on {', '.join(targets)}, {', '.join(dtypes)}"


def inject(model: nn.Module, *, rank: int, targets: str = SQUARE) -> None:
    """Give linears of every block a new adapter and freeze everything else.

    Args:
        model: changed in place.
        rank: width of each adapter.
        targets: ``square`` (MiniMind's q_proj and o_proj), ``all``, or names such as ``q_proj,v_proj,gate_proj``.

    Raises:
        RunError: when no linear is meant.
    """
    model.requires_grad_(False)
    named = tuple(LORA_TARGETS) if targets == ALL else tuple(name.strip() for name in targets.split(","))
    chosen = [
        (parent, name, child)
        for path, parent in model.named_modules()
        for name, child in parent.named_children()
        if type(child) is nn.Linear and path.startswith("model.layers.")
        if (child.in_features == child.out_features if targets == SQUARE else name in named)
    ]
    if not chosen:
        raise RunError(
            f"no linear of this model is meant by --lora_targets {targets}",
            why="none is square" if targets == SQUARE else f"it has {', '.join(LORA_TARGETS)}",
            remedy="name them, e.g. --lora_targets q_proj,o_proj",
            reason=Reason.DATA_INVALID,
        )
    for parent, name, child in chosen:
        setattr(parent, name, LoraLinear(child, Lora(child.in_features, child.out_features, rank)))


def adapter_state(model: nn.Module) -> dict[str, Tensor]:
    """The adapters alone, under MiniMind's keys."""
    return {name: value for name, value in model.state_dict().items() if KEY in name}


def describe(model: nn.Module) -> dict[str, object]:
    """Rank and target of the adapters on a model, for the description beside their file."""
    found = {name: module.lora for name, module in model.named_modules() if isinstance(module, LoraLinear)}
    return {
        "ranks": sorted({adapter.A.out_features for adapter in found.values()}),
        "targets": list(dict.fromkeys(name.rpartition(".")[2] for name in found)),
    }


def ranks(model: nn.Module) -> dict[str, int]:
    """Ranks of the adapters on a model, by the path of their linear."""
    found = ((name, module) for name, module in model.named_modules() if isinstance(module, LoraLinear))
    return {name: module.lora.A.out_features for name, module in found}


def find(name: str, save_dir: Path, *, hidden_size: int) -> tuple[Path, float]:
    """The file and strength that ``PATH``, ``PATH:0.5`` or a bare name such as ``lora_identity`` mean."""
    strength = 1.0
    asked = re.fullmatch(r"(.+):(-?\d*\.?\d+)", name)
    if asked and not Path(name).exists():
        name, strength = asked[1], float(asked[2])
    if "/" in name or name.endswith(".pth"):
        return Path(name), strength
    return save_dir / weights_file(f"lora/{name}", hidden_size=hidden_size), strength


def read(path: Path | str) -> Adapter:
    """An adapter file of either generation, fp16 or fp32, any targets and ranks.

    Raises:
        RunError: when the file is missing or is no adapter.
    """
    return of_state(read_tensors(Path(path)), path=Path(path))


def of_state(tensors: Mapping[str, Tensor], *, path: Path) -> Adapter:
    """An adapter from a state dict; see :func:`read`."""
    # later versions of the original write the adapters of a compiled or wrapped model
    state = {
        re.sub(r"^(?:_orig_mod\.|module\.)+", "", name): value for name, value in tensors.items()
    }  # fmt: skip
    halves: dict[str, dict[str, Tensor]] = {}
    strange = []
    for name, value in state.items():
        layer, _, half = name.partition(KEY)
        if half in ("A.weight", "B.weight") and value.dim() == 2:
            halves.setdefault(layer, {})[half[0]] = value
        else:
            strange.append(name)
    uneven = [
        layer for layer, pair in halves.items()
        if len(pair) != 2 or not len(pair["A"]) or len(pair["A"]) != pair["B"].shape[1]
    ]  # fmt: skip
    if strange or uneven or not halves:
        raise RunError(
            f"{path} is no adapter of MiniMind's form",
            why=f"{(strange or uneven or ['it'])[0]} is not one of pairs `….lora.A.weight`, `….lora.B.weight`",
            remedy="give a file such as out/lora/lora_identity_512.pth; whole models go to --from_weight",
            reason=Reason.DATA_INVALID,
        )
    return Adapter(path=path, pairs={layer: (pair["A"], pair["B"]) for layer, pair in halves.items()})


def apply(
    model: nn.Module, adapter_path: Path | str, *, strength: float = 1.0, say: Callable[[str], None] | None = None
) -> None:
    """Put the adapters of a file onto a model, in place, added to those that it has; all else is frozen.

    Args:
        model: the base, or a base with adapters.
        adapter_path: see :func:`read`.
        strength: factor on what the adapters add.
        say: is told what was read: ranks, targets and dtype.

    Raises:
        RunError: when the file is missing, is no adapter, or is one of another model; the model is as before then.
    """
    put(model, read(adapter_path), strength=strength, say=say)


def put(model: nn.Module, adapter: Adapter, *, strength: float = 1.0, say: Callable[[str], None] | None = None) -> None:
    """:func:`apply` for an adapter that has been read."""
    modules = dict(model.named_modules())
    wrong = [problem for name, pair in adapter.pairs.items() if (problem := _misfit(modules.get(name), name, pair))]
    if wrong:
        raise RunError(
            f"{adapter.path} is an adapter of another model",
            why=wrong[0] + (f"; and {len(wrong) - 1} more differ" if len(wrong) > 1 else ""),
            remedy="use it with the weights that it was trained on, or with others of their shape",
            reason=Reason.DATA_INVALID,
        )
    if say:
        say(str(adapter) + (f", at {strength:g} of its strength" if strength != 1 else ""))
    model.requires_grad_(False)
    for name, (a, b) in adapter.pairs.items():
        base = modules[name]
        a, b = a.to(base.weight), b.to(base.weight) * strength
        if isinstance(base, LoraLinear):
            a = torch.cat((base.lora.A.weight.detach(), a))  # (r1 + r2, in)
            b = torch.cat((base.lora.B.weight.detach(), b), dim=1)  # (out, r1 + r2)
        with torch.device("meta"):  # nothing random is drawn for what is replaced at once
            made = Lora(base.in_features, base.out_features, len(a))
        made.A.weight, made.B.weight = nn.Parameter(a), nn.Parameter(b)
        if isinstance(base, LoraLinear):
            base.lora = made
        else:
            parent, _, child = name.rpartition(".")
            setattr(modules[parent], child, LoraLinear(base, made))
    for module in model.modules():
        if isinstance(module, LoraLinear):
            module.lora.requires_grad_(True)


def _misfit(module: nn.Module | None, name: str, pair: tuple[Tensor, Tensor]) -> str | None:
    """Why an adapter cannot stand on this layer."""
    if not isinstance(module, nn.Linear) or not name.startswith("model.layers."):
        return f"this model has no linear {name}"
    (_, width), (rows, _) = pair[0].shape, pair[1].shape
    if (width, rows) != (module.in_features, module.out_features):
        return f"{name} maps {module.in_features} to {module.out_features} here, the adapter {width} to {rows}"
    return None


def base_of(path: Path) -> str | None:
    """sha256 of the weights that an adapter was trained on, where its description names it."""
    named = sidecar_of(path).get("base_sha256")
    return named if isinstance(named, str) else None


def merge(model: nn.Module) -> None:
    """Fold the adapters into the weights, W + BA, in place; the model has its original keys again."""
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, LoraLinear):
                plain = nn.Linear(child.in_features, child.out_features, bias=False, device="meta")
                b, a = (half.weight.detach().double() for half in (child.lora.B, child.lora.A))
                plain.weight = nn.Parameter((child.weight.detach().double() + b @ a).to(child.weight.dtype))
                setattr(parent, name, plain)
