"""Weights and checkpoints: what is written is whole or absent, what is read is checked before it is believed.

``ckpt/step-NNNNNNNN/`` holds fp32 parameters, optimiser state and ``state.json`` under ``SHA256SUMS``; ``export/``
holds the final fp16 weights under the original's name with a JSON sidecar that says how to build the model. Reading
weight files is :mod:`minimind.weights`; its names that others use stand here too.
"""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from minimind import huggingface
from minimind.config import Yarn
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
from minimind.shapes import infer_config as infer_config
from minimind.weights import find_weights as find_weights
from minimind.weights import read_tensors as read_tensors
from minimind.weights import refuse_differences
from minimind.weights import sidecar_of as sidecar_of
from minimind.weights import strict_load as strict_load

SIDECAR_VERSION = 1


@dataclass(frozen=True, kw_only=True)
class Saved:
    """One checkpoint as read."""

    step: int
    state: Mapping[str, Any]
    parameters: dict[str, Tensor]
    optimizer: dict[str, Any]
    damaged: tuple[int, ...] = ()
    """Steps of newer ones whose checksums do not hold."""


def save(
    run: RunDir, *, step: int, state: Mapping[str, Any], parameters: dict[str, Tensor], optimizer: Any, keep: int
) -> None:
    """Publish ``ckpt/step-NNNNNNNN`` and drop all but the ``keep`` newest and the best.

    Raises:
        RunError: NAN_LOSS for parameters that are not finite, which nobody could go on from; DISK_FULL.
    """
    final = run.checkpoints / f"step-{step:08d}"
    if not final.exists():
        _refuse_not_finite(parameters, step)
        if not run.checkpoints.exists():
            run.checkpoints.mkdir(mode=0o700, exist_ok=True)
            for folder in (run.root, run.root.parent):  # a checkpoint is as durable as the names above it
                fsync_dir(folder)
        aside = run.checkpoints / f".{final.name}.{os.getpid()}.tmp"
        try:
            shutil.rmtree(aside, ignore_errors=True)  # of a killed save by a process of the same number
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


def _refuse_not_finite(parameters: Mapping[str, Tensor], step: int) -> None:
    broken = [name for name, value in parameters.items() if not torch.isfinite(value).all()]
    if broken:
        raise RunError(
            f"the weights after step {step} are not finite: {', '.join(broken[:3])}",
            why="training diverged; such a checkpoint would take the place of sound ones",
            remedy="start again with a lower --learning_rate; the checkpoints before it are kept",
            reason=Reason.NAN_LOSS,
        )


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
    steps, damaged = run.checkpoint_steps(), []
    for step in reversed(steps):
        folder = run.checkpoints / f"step-{step:08d}"
        if verified_files(folder):
            return Saved(
                step=step,
                state=json.loads((folder / "state.json").read_bytes()),
                parameters=read_tensors(folder / "parameters.pt"),
                optimizer=torch.load(folder / "optimizer.pt", map_location="cpu", weights_only=True),
                damaged=tuple(damaged),
            )
        damaged.append(step)
        say(f"warning: checkpoint {folder.name} does not match its SHA256SUMS; using the one before it")
    if steps:
        raise RunError(
            f"no checkpoint of {run.root.name} can be trusted",
            why=f"all {len(steps)} differ from their SHA256SUMS",
            remedy="look at the disk; to begin again give another --run_dir (nothing here is overwritten)",
        )
    return None


def set_aside(run: RunDir, damaged: Sequence[int]) -> None:
    """Give damaged checkpoints a name that is none, where a sound one is gone on from: they are saved anew."""
    for step in damaged:
        folder = run.checkpoints / f"step-{step:08d}"
        place = run.checkpoints / f"damaged-{folder.name}"
        shutil.rmtree(place, ignore_errors=True)
        folder.rename(place)
    if damaged:
        fsync_dir(run.checkpoints)


def load_model(path: Path | str, device: str | torch.device = "cpu", *, yarn: bool = False) -> MiniMind:
    """A model in fp32 evaluation mode from any weights file, its shape found from the file itself.

    A folder in Hugging Face's format is read too. ``yarn`` stretches the positions for longer texts
    (:class:`minimind.config.Yarn`); a folder whose config.json asks for it needs no word here.

    Raises:
        RunError: when the file is missing, is no weights file, or does not fit strictly.
    """
    path = Path(path)
    if huggingface.is_folder(path):
        state, config = huggingface.read(path)
    else:
        state = read_tensors(path)
        config = infer_config(state, sidecar_of(path), source=str(path))
    if yarn and config.yarn is None:
        config = dataclasses.replace(config, yarn=Yarn())
    with torch.device("meta"):
        model = MiniMind(config)
    refuse_differences(model, state, source=str(path))
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
            remedy="start again with a lower --learning_rate, or go on from weights of before (--from_weight); nothing "
            "was exported",
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
