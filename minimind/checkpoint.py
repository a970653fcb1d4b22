"""Weights and checkpoints: what is written is whole or absent, what is read is checked before it is believed.

``ckpt/step-NNNNNNNN/`` holds fp32 parameters, optimiser state and ``state.json`` under ``SHA256SUMS``; ``export/``
holds the final fp16 weights under the original's name with a JSON sidecar that says how to build the model.
"""

from __future__ import annotations

import dataclasses
import json
import os
import re
import shutil
import warnings
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from minimind.config import ModelConfig
from minimind.durable import (
    fsync_dir,
    is_disk_full,
    link_over,
    publish,
    publishing,
    to_json,
    verified_files,
    write_sums,
)
from minimind.model import MiniMind
from minimind.retention import prune
from minimind.rundir import Reason, RunDir, RunError

SIDECAR_VERSION = 1
UNSHAPED = ("rms_norm_eps", "rope_theta", "max_position_embeddings", "experts_per_token")
"""What the shapes of a file cannot say; the sidecar does, else the generation's default holds."""


@dataclass(frozen=True, kw_only=True)
class Saved:
    """One checkpoint as read."""

    step: int
    state: Mapping[str, Any]
    parameters: dict[str, Tensor]
    optimizer: dict[str, Any]


def save(
    run: RunDir, *, step: int, state: Mapping[str, Any], parameters: dict[str, Tensor], optimizer: Any, keep: int
) -> None:
    """Publish ``ckpt/step-NNNNNNNN`` and drop all but the ``keep`` newest and the best."""
    final = run.checkpoints / f"step-{step:08d}"
    if not final.exists():
        if not run.checkpoints.exists():
            run.checkpoints.mkdir(mode=0o700, exist_ok=True)
            for folder in (run.root, run.root.parent):  # a checkpoint is as durable as the names above it
                fsync_dir(folder)
        aside = run.checkpoints / f".{final.name}.{os.getpid()}.tmp"
        try:
            aside.mkdir(mode=0o700)
            for name, value in (("parameters.pt", parameters), ("optimizer.pt", optimizer)):
                with publishing(aside / name) as file:
                    torch.save(value, file)
            publish(aside / "state.json", to_json({**state, "step": step}))
            write_sums(aside)
            aside.rename(final)
            fsync_dir(run.checkpoints)
        except BaseException as error:
            shutil.rmtree(aside, ignore_errors=True)
            if is_disk_full(error):
                raise _no_room(run, parameters, optimizer) from error
            raise
    prune(run, keep=keep)


def _no_room(run: RunDir, *parts: Any) -> RunError:
    needed_bytes = sum(tensor.nbytes for part in parts for tensor in tree_leaves(part) if isinstance(tensor, Tensor))
    return RunError(
        f"the disk is full: a checkpoint needs {needed_bytes:,} bytes, {shutil.disk_usage(run.root).free:,} are free",
        why=f"it goes to {run.checkpoints}; the checkpoints before it are whole",
        remedy="free space or lower --keep_checkpoints, then resume",
        reason=Reason.DISK_FULL,
    )


def latest(run: RunDir, *, say: Callable[[str], None]) -> Saved | None:
    """The newest checkpoint whose checksums hold; a damaged one is named and passed over.

    Returns:
        None when the run has no checkpoint at all.

    Raises:
        RunError: when there are checkpoints and every one is damaged (starting afresh would hide the loss).
    """
    steps = run.checkpoint_steps()
    for step in reversed(steps):
        folder = run.checkpoints / f"step-{step:08d}"
        if verified_files(folder):
            return Saved(
                step=step,
                state=json.loads((folder / "state.json").read_bytes()),
                parameters=read_tensors(folder / "parameters.pt"),
                optimizer=torch.load(folder / "optimizer.pt", map_location="cpu", weights_only=True),
            )
        say(f"warning: checkpoint {folder.name} does not match its SHA256SUMS; using the one before it")
    if steps:
        raise RunError(
            f"no checkpoint of {run.root.name} can be trusted",
            why=f"all {len(steps)} differ from their SHA256SUMS",
            remedy="look at the disk; to begin again give another --run_dir (nothing here is overwritten)",
        )
    return None


def read_tensors(path: Path) -> dict[str, Tensor]:
    """A flat state dict from a file: tensors only, no code, no archive that grows when unpacked.

    Raises:
        RunError: DATA_MISSING, or DATA_INVALID for anything that is not such a file.
    """

    def refuse(why: str) -> RunError:
        return RunError(
            f"{path} is no weights file",
            why=why,
            remedy="copy it again from where it was written, or start from other weights (--from_weight)",
            reason=Reason.DATA_INVALID,
        )

    if not path.is_file():
        raise RunError(
            f"no weights file {path}",
            why="it does not exist",
            remedy="train the stage that writes it, copy it there, or start from nothing with --from_weight none",
            reason=Reason.DATA_MISSING,
        )
    try:
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                entries = archive.infolist()
            packed = [entry for entry in entries if entry.compress_type != zipfile.ZIP_STORED]
            if packed or sum(entry.file_size for entry in entries) > path.stat().st_size:
                raise refuse("it is compressed or claims more bytes than it has, which torch.save never does")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            loaded = torch.load(path, map_location="cpu", weights_only=True)
    except RunError:
        raise
    except Exception as error:  # whatever torch's and pickle's readers raise on bytes that are not theirs
        raise refuse(f"{type(error).__name__}: {str(error).partition(chr(10))[0]}") from error
    if not isinstance(loaded, dict) or not all(isinstance(k, str) and isinstance(v, Tensor) for k, v in loaded.items()):
        raise refuse("it does not hold a flat dictionary of tensors")
    return loaded


def strict_load(model: nn.Module, state: Mapping[str, Tensor], *, source: str) -> None:
    """Copy a state dict into a model, every key and shape accounted for.

    Raises:
        RunError: naming what is missing, left over or of another shape.
    """
    own = model.state_dict()
    differences = [f"missing {name}" for name in own if name not in state]
    differences += [f"unexpected {name}" for name in state if name not in own]
    differences += [
        f"{name} is {tuple(state[name].shape)}, the model's is {tuple(value.shape)}"
        for name, value in own.items()
        if name in state and state[name].shape != value.shape
    ]
    if differences:
        shown = "; ".join(differences[:5]) + (f"; and {len(differences) - 5} more" if len(differences) > 5 else "")
        raise RunError(
            f"{source} does not fit this model",
            why=shown,
            remedy="give the --hidden_size and --num_hidden_layers it was trained with, or other weights",
            reason=Reason.DATA_INVALID,
        )
    model.load_state_dict(state)


def infer_config(state: Mapping[str, Tensor], sidecar: Mapping[str, Any], *, source: str) -> ModelConfig:
    """The model's shape from a weights file's keys and shapes; its sidecar adds what these cannot say (the heads).

    Raises:
        RunError: when the keys are no MiniMind decoder's.
    """
    known = {field.name for field in dataclasses.fields(ModelConfig)}
    told = {key: value for key, value in (sidecar.get("model") or {}).items() if key in known}
    try:
        vocab_size, hidden_size = state["model.embed_tokens.weight"].shape
        layers = 1 + max(int(key.split(".")[2]) for key in state if key.startswith("model.layers."))
        first = "model.layers.0."
        q_norm, gate = state.get(f"{first}self_attn.q_norm.weight"), state.get(f"{first}mlp.gate.weight")
        base = ModelConfig.for_arch(
            "minimind2" if q_norm is None else "minimind3",
            hidden_size=hidden_size,
            num_hidden_layers=layers,
            vocab_size=vocab_size,
            use_moe=gate is not None,
        )
        head_dim = int(told.get("head_dim", base.head_dim)) if q_norm is None else len(q_norm)
        expert = "mlp." if gate is None else "mlp.experts.0."
        shared = {key.split(".")[5] for key in state if key.startswith(f"{first}mlp.shared_experts.")}
        return dataclasses.replace(
            base,
            **{k: v for k, v in told.items() if k in UNSHAPED},
            num_experts=0 if gate is None else len(gate),
            num_shared_experts=len(shared),
            head_dim=head_dim,
            num_attention_heads=state[f"{first}self_attn.q_proj.weight"].shape[0] // head_dim,
            num_key_value_heads=state[f"{first}self_attn.k_proj.weight"].shape[0] // head_dim,
            intermediate_size=state[f"{first}{expert}gate_proj.weight"].shape[0],
        )
    except (KeyError, ValueError, IndexError) as error:
        raise RunError(
            f"{source} holds no MiniMind model",
            why=f"a key that every decoder has is missing or of another form: {error}",
            remedy="give a weights file such as full_sft_512.pth; an adapter goes to --from_lora",
            reason=Reason.DATA_INVALID,
        ) from error


def find_weights(name: str, save_dir: Path) -> Path:
    """The file that a path, or a name such as ``full_sft`` in ``save_dir``, means.

    Raises:
        RunError: DATA_MISSING when there is none of that name, or more than one size of it.
    """
    if "/" in name or name.endswith(".pth"):
        return Path(name)
    found = sorted(path for path in save_dir.glob("*.pth") if re.fullmatch(rf"{re.escape(name)}_\d+(_moe)?", path.stem))
    if len(found) != 1:
        raise RunError(
            f"{save_dir} holds {'no weights' if not found else f'{len(found)} sizes of weights'} by the name {name!r}",
            why=", ".join(path.name for path in found or sorted(save_dir.glob("*.pth")))
            or "there is no .pth file at all",
            remedy="give the file itself (--from_weight PATH), or another folder (--save_dir)",
            reason=Reason.DATA_MISSING,
        )
    return found[0]


def sidecar_of(path: Path) -> dict[str, Any]:
    """What the trainer wrote beside a weights file; empty for the original's files."""
    try:
        loaded = json.loads(path.with_suffix(".json").read_bytes())
    except (OSError, ValueError):
        return {}
    return loaded if isinstance(loaded, dict) else {}


def load_model(path: Path | str, device: str | torch.device = "cpu") -> MiniMind:
    """A model in fp32 evaluation mode from any weights file, its shape found from the file itself.

    Raises:
        RunError: when the file is missing, is no weights file, or does not fit strictly.
    """
    path = Path(path)
    state = read_tensors(path)
    with torch.device("meta"):
        model = MiniMind(infer_config(state, sidecar_of(path), source=str(path)))
    model = model.to_empty(device="cpu")
    model.lm_head.weight = model.model.embed_tokens.weight
    strict_load(model, {name: value.float() for name, value in state.items()}, source=str(path))
    return model.to(device).eval()


def export(run: RunDir, name: str, state: Mapping[str, Tensor], *, sidecar: Mapping[str, Any], save_dir: Path) -> Path:
    """Write the final weights (fp16, CPU) to ``export/`` with checksums, then give them their name in ``save_dir``.

    Raises:
        RunError: NAN_LOSS when a weight is not finite in fp16.
    """
    half = {key: value.detach().to("cpu", torch.float16).contiguous() for key, value in state.items()}
    broken = [key for key, value in half.items() if not torch.isfinite(value).all()]
    if broken:
        raise RunError(
            f"the final weights are not finite: {', '.join(broken[:3])}",
            why="training diverged, or a weight left the range of fp16 (65504)",
            remedy="lower --learning_rate and go on from an earlier checkpoint; nothing was exported",
            reason=Reason.NAN_LOSS,
        )
    weights = run.export / name
    weights.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    with publishing(weights) as file:
        torch.save(half, file)
    publish(weights.with_suffix(".json"), to_json({"version": SIDECAR_VERSION, "dtype": "float16", **sidecar}))
    write_sums(run.export)
    final = save_dir / name
    link_over(weights, final)
    link_over(weights.with_suffix(".json"), final.with_suffix(".json"))
    return final
