"""Weight files as they are read: believed only after every name, shape and byte has been accounted for."""

from __future__ import annotations

import json
import pickle
import re
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from minimind.pickles import trouble
from minimind.rundir import Reason, RunError
from minimind.shapes import damaged
from minimind.tokenizer import Tokenizer

RECORD = "minimind.json"
"""The sidecar of a folder of weights, inside it."""
SIDECAR_LIMIT_BYTES = 1 << 20


def read_tensors(path: Path) -> dict[str, Tensor]:
    """A flat state dict from a file: tensors only, no code, nothing that takes more memory than the file has bytes.

    Raises:
        RunError: DATA_MISSING, or DATA_INVALID for anything that is not such a file.
    """
    if path.is_dir():
        raise _is_a_folder(path)
    if not path.is_file():
        raise RunError(
            f"no weights file {path}",
            why="it does not exist",
            remedy="train the stage that writes it, copy it there, or name another file; a training may start from "
            "nothing with --from_weight none",
            reason=Reason.DATA_MISSING,
        )
    try:
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                entries = archive.infolist()
            packed = [entry for entry in entries if entry.compress_type != zipfile.ZIP_STORED]
            if packed or sum(entry.file_size for entry in entries) > path.stat().st_size:
                raise _refused(path, "it is compressed or claims more bytes than it has, which torch.save never does")
        if found := trouble(path):
            raise _refused(path, found)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            loaded = torch.load(path, map_location="cpu", weights_only=True)
    except RunError:
        raise
    except Exception as error:  # whatever torch's and pickle's readers raise on bytes that are not theirs
        raise _refused(path, _in_short(error)) from error
    if not isinstance(loaded, dict) or not all(isinstance(k, str) and isinstance(v, Tensor) for k, v in loaded.items()):
        raise _refused(path, "it does not hold a flat dictionary of tensors")
    refuse_odd_tensors(loaded, path, file_bytes=path.stat().st_size)
    return loaded


def refuse_odd_tensors(state: Mapping[str, Tensor], path: Path, *, file_bytes: int) -> None:
    """Raise for tensors that are no plain numbers, or views that would grow far beyond the file when copied."""
    for name, value in state.items():
        if value.is_meta or value.numel() * value.element_size() > _stored_bytes(value):
            raise _refused(path, f"{name} claims more numbers than the file holds")
        if value.layout is not torch.strided or value.dtype not in (torch.float16, torch.bfloat16, torch.float32):
            raise _refused(path, f"{name} is {value.dtype}; weights are float16, bfloat16 or float32")
    sizes = [value.numel() * value.element_size() for value in state.values()]
    if sum(sizes) > file_bytes + max(sizes, default=0):  # the tied head may name the embedding's bytes again
        raise _refused(path, f"its tensors claim {sum(sizes):,} bytes, the file has {file_bytes:,}")


def _stored_bytes(value: Tensor) -> int:
    return value.untyped_storage().nbytes() if value.layout is torch.strided else 1 << 62


def _refused(path: Path, why: str) -> RunError:
    return RunError(
        f"{path} is no weights file",
        why=why,
        remedy="copy it again from where it was written, or start from other weights (--from_weight)",
        reason=Reason.DATA_INVALID,
    )


def _in_short(error: Exception) -> str:
    """One line of a reader's complaint, without its advice to read the file unsafely."""
    line = str(error).partition("\n")[0]
    if isinstance(error, pickle.UnpicklingError) or "weights_only" in line or "Weights only" in line:
        return "it is damaged or holds more than tensors, which may run code when read; nothing in it was run"
    return f"{type(error).__name__}: {line}"


def _is_a_folder(path: Path) -> RunError:
    inside = sorted(file.name for file in path.glob("*.pth"))
    if (path / "config.json").is_file():
        remedy = (
            f"make a weights file of it: python -m minimind export --format minimind --from_weight {path} --to NAME"
        )
    else:
        remedy = f"give a file in it: {', '.join(inside[:5])}" if inside else "give a file such as out/full_sft_512.pth"
    return RunError(
        f"{path} is a folder, and no weights file",
        why="one .pth file is needed here",
        remedy=remedy,
        reason=Reason.DATA_MISSING,
    )


def strict_load(model: nn.Module, state: Mapping[str, Tensor], *, source: str) -> None:
    """Copy a state dict into a model, every key and shape accounted for.

    Raises:
        RunError: naming what is missing, left over or of another shape.
    """
    refuse_differences(model, state, source=source)
    model.load_state_dict(state)


def refuse_differences(model: nn.Module, state: Mapping[str, Tensor], *, source: str) -> None:
    """Raise for keys and shapes that are not the model's; one on the meta device will do, which takes no memory."""
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


def find_weights(name: str, save_dir: Path) -> Path:
    """The file that a path, or a name such as ``full_sft`` in ``save_dir``, means; or a folder in another format.

    Raises:
        RunError: DATA_MISSING when there is none of that name, or more than one size of it.
    """
    if "/" in name or name.endswith(".pth") or (Path(name) / "config.json").is_file():
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
    """What the trainer wrote beside a weights file; empty for the original's files.

    Raises:
        RunError: when there is one that cannot be read.
    """
    described = path / RECORD if path.is_dir() else path.with_suffix(".json")
    try:
        with open(described, "rb") as file:
            data = file.read(SIDECAR_LIMIT_BYTES + 1)
        loaded = json.loads(data) if len(data) <= SIDECAR_LIMIT_BYTES else None
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, RecursionError) as error:
        raise damaged(str(path), f"{described.name}: {type(error).__name__}: {error}") from error
    if not isinstance(loaded, dict):
        raise damaged(str(path), f"{described.name} is no JSON object, or larger than {SIDECAR_LIMIT_BYTES:,} bytes")
    return loaded


def refuse_other_tokenizer(
    words: Tokenizer, weights: Path, *, vocab_size: int, any_tokenizer: bool, exact: bool = False
) -> None:
    """Raise when a tokenizer is not the weights': too large (``exact``: of another size), or not the one they name.

    Args:
        words: the tokenizer that would be used.
        weights: the file it would be used with; its sidecar names the tokenizer it was trained with.
        vocab_size: rows of the weights' embedding.
        any_tokenizer: do not compare with the one they name; the user insists.
        exact: the sizes must be equal (training), not only fit.

    Raises:
        RunError: DATA_INVALID, with the folder that holds the right one when it lies beside.
    """
    named = sidecar_of(weights).get("tokenizer_sha256")
    short = named[:8] if isinstance(named, str) else None
    kept = [folder / f"tokenizer.{short}" for folder in (weights.parent, words.folder.parent)] if short else []
    where = next((str(folder) for folder in kept if folder.is_dir()), "PATH")
    remedy = f"give the tokenizer that the weights were trained with: --tokenizer {where}"
    if words.vocab_size > vocab_size or (exact and words.vocab_size != vocab_size):
        raise RunError(
            f"the tokenizer in {words.folder} does not fit {weights}",
            why=f"it has {words.vocab_size} entries, the weights' embedding {vocab_size}",
            remedy=remedy,
            reason=Reason.DATA_INVALID,
        )
    if short and named != words.sha256 and not any_tokenizer:
        raise RunError(
            f"the tokenizer in {words.folder} is not the one that {weights} was trained with",
            why=f"the weights name {short}…, this is {words.sha256[:8]}…: the same ids would be other words, "
            "or the chat template differs",
            remedy=f"{remedy}; or insist with --any_tokenizer",
            reason=Reason.DATA_INVALID,
        )
