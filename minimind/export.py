"""Weights for other programs, and back: Hugging Face folders, plain files with adapters merged, PEFT adapters.

Whatever is written is read again and must give the source's logits before it gets its name.
"""

from __future__ import annotations

import dataclasses
import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import safetensors.torch
import torch
from torch import Tensor

from minimind import checkpoint, huggingface, lora, peft, proof
from minimind.catalog import TOKENIZER_FILES, weights_file
from minimind.config import UsageError
from minimind.durable import fsync_dir, is_disk_full, link_over, publish, publishing, sha256_file, to_json
from minimind.flags import Parser, add_fields
from minimind.folder import aside_of, publishing_folder, remove_leftovers
from minimind.rundir import Reason, RunError
from minimind.tokenizer import Tokenizer, files_of
from minimind.uses import Opened, WeightsConfig, opened
from minimind.weights import RECORD, read_tensors, sidecar_of

DTYPES = {"float16": torch.float16, "bfloat16": torch.bfloat16, "float32": torch.float32}


@dataclass(frozen=True, kw_only=True)
class ExportConfig(WeightsConfig):
    """Write trained weights for other programs, adapters merged into them, and check that their logits are the same."""

    to: Annotated[str | None, "folder to write; for a weights file its path, or its name in save_dir"] = None
    format: Annotated[
        Literal["huggingface", "minimind", "merged", "peft"],
        "huggingface: a folder for transformers; minimind: a weights file; merged: the same, insisting on adapters; "
        "peft: the adapters alone, for the exported base",
    ] = "huggingface"
    dtype: Annotated[
        Literal["source", "float16", "bfloat16", "float32"], "how numbers are stored; source: as they were"
    ] = "source"


def export(argv: Sequence[str]) -> int:
    """``python -m minimind export``; returns the exit code."""
    parser = Parser(prog="python -m minimind export", description=ExportConfig.__doc__, allow_abbrev=False)
    add_fields(parser, ExportConfig, {})
    config = ExportConfig(**vars(parser.parse_args(list(argv))))
    if config.to is None:
        raise UsageError(
            "export needs a place to write to",
            why="no --to was given",
            remedy="python -m minimind export --from_weight out/full_sft_512.pth --to exported/full_sft_512",
        )
    if config.format in ("merged", "peft") and not config.from_lora:
        raise UsageError(
            f"--format {config.format} needs an adapter",
            why="no --from_lora was given",
            remedy="give --from_lora out/lora/lora_identity_512.pth, or another --format",
        )
    use = opened(config, verb="export")
    write = {"huggingface": _huggingface, "peft": _peft}.get(config.format, _minimind)
    try:
        print(write(config, config.to, use), flush=True)
    except RunError:
        raise
    except Exception as error:
        if not isinstance(error, OSError) and not is_disk_full(error):
            raise
        raise RunError(
            f"{config.to} cannot be written",
            why="the disk is full" if is_disk_full(error) else str(error),
            remedy="free space, or give another --to; nothing was replaced",
            reason=Reason.DISK_FULL if is_disk_full(error) else Reason.TRAINER_ERROR,
        ) from error
    return 0


def _huggingface(config: ExportConfig, to: str, use: Opened) -> str:
    ids = proof.token_ids(use.words)
    before = proof.logits(use.model, ids)
    dtype, lossless = _dtype(config, use)
    lora.merge(use.model)
    stored = _stored(use.model.state_dict(), dtype)
    special = {"bos_token_id": use.words.bos_id, "eos_token_id": use.words.eos_id, "pad_token_id": use.words.pad_id}
    with publishing_folder(Path(to), record=RECORD) as folder:
        theirs = {name: value.contiguous() for name, value in huggingface.to_theirs(stored, use.model.config).items()}
        publish(folder / "model.safetensors", safetensors.torch.save(theirs, {"format": "pt"}), mode=0o644)
        described = huggingface.describe(use.model.config, dtype=dtype, ids=special)
        sampling = {"do_sample": True, "temperature": 0.85, "top_p": 0.85}
        for name, value in (("config.json", described), ("generation_config.json", {**special, **sampling})):
            publish(folder / name, to_json(value), mode=0o644)
        for name, data in files_of(use.words).items():
            publish(folder / name, data, mode=0o644)
        publish(folder / RECORD, to_json(_record(config, use, dtype)), mode=0o644)
        read = checkpoint.load_model(folder)
        _must_be_equal(read.state_dict(), stored, to)
        error = proof.compare(proof.logits(read, ids), before, dtype=dtype, lossless=lossless, what=to)
        seen = proof.by_transformers(folder, read, ids, what=to)
    return f"wrote {to} ({described['architectures'][0]}, {dtype}); logits: {error}; transformers: {seen}"


def _minimind(config: ExportConfig, to: str, use: Opened) -> str:
    shape = use.model.config
    final = Path(to)
    if "/" not in to and not to.endswith(".pth"):
        final = config.save_dir / weights_file(to, hidden_size=shape.hidden_size, use_moe=bool(shape.num_experts))
    if final.suffix != ".pth" or os.path.lexists(final):
        raise RunError(
            f"{final} cannot be the new weights file",
            why="it is there already" if final.suffix == ".pth" else "a weights file ends in .pth",
            remedy="give another name with --to, e.g. --to out/merged_512.pth; nothing is overwritten",
            reason=Reason.DATA_INVALID,
        )
    ids = proof.token_ids(use.words)
    before = proof.logits(use.model, ids)
    dtype, lossless = _dtype(config, use)
    lora.merge(use.model)
    stored = _stored(use.model.state_dict(), dtype)
    final.parent.mkdir(parents=True, exist_ok=True)
    remove_leftovers(final)
    aside = aside_of(final)
    try:
        aside.mkdir(mode=0o700)
        made = aside / final.name
        with publishing(made) as file:
            torch.save(stored, file)
        model = dataclasses.asdict(dataclasses.replace(shape, yarn=None))
        publish(made.with_suffix(".json"), to_json({**_record(config, use, dtype), "model": model}))
        read = checkpoint.load_model(made, yarn=shape.yarn is not None)
        _must_be_equal(read.state_dict(), stored, to)
        error = proof.compare(proof.logits(read, ids), before, dtype=dtype, lossless=lossless, what=to)
        link_over(made.with_suffix(".json"), final.with_suffix(".json"))
        _give_new_name(made, final)
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    said = [f"wrote {final} ({shape.arch}, {dtype}); logits: {error}", *_leave_tokenizer(use.words, final.parent)]
    return "\n".join([*said, "its positions are stretched where --yarn is given"] if shape.yarn else said)


def _peft(config: ExportConfig, to: str, use: Opened) -> str:
    ids = proof.token_ids(use.words)
    before = proof.logits(use.model, ids)
    dtype = "float32" if config.dtype == "source" else config.dtype
    stored = _stored(lora.adapter_state(use.model), dtype)
    base = use.weights.name.removesuffix(".pth")
    with publishing_folder(Path(to), record=RECORD) as folder:
        peft.write(folder, stored, base=base, layers=use.model.config.num_hidden_layers)
        publish(folder / RECORD, to_json(_record(config, use, dtype)), mode=0o644)
        read = checkpoint.load_model(use.weights, yarn=config.yarn)
        lora.put(read, lora.of_state(peft.read_back(folder), path=folder))
        lossless = dtype == "float32"
        error = proof.compare(proof.logits(read, ids), before, dtype=dtype, lossless=lossless, what=to)
    return f"wrote {to} (PEFT, {dtype}, for the base {base}); logits: {error}"


def _dtype(config: ExportConfig, use: Opened) -> tuple[str, bool]:
    """What numbers are stored as, and whether every number of the source stays what it is."""
    if huggingface.is_folder(use.weights):
        state, _ = huggingface.read(use.weights)
    else:
        state = read_tensors(use.weights)
    found = {str(value.dtype).removeprefix("torch.") for value in state.values()}
    source = found.pop() if len(found) == 1 else "float32"
    dtype = source if config.dtype == "source" else config.dtype
    return dtype, dtype == "float32" or (dtype == source and not config.from_lora)


def _stored(state: Mapping[str, Tensor], dtype: str) -> dict[str, Tensor]:
    rounded = {name: value.detach().to("cpu", DTYPES[dtype]).contiguous() for name, value in state.items()}
    broken = [name for name, value in rounded.items() if not torch.isfinite(value).all()]
    if broken:
        raise RunError(
            f"the weights are not finite in {dtype}: {', '.join(broken[:3])}",
            why="they were not finite before, or a number is too large for this type",
            remedy="give --dtype float32; if it says the same, these weights are damaged",
            reason=Reason.DATA_INVALID,
        )
    return rounded


def _record(config: ExportConfig, use: Opened, dtype: str) -> dict[str, Any]:
    """Where it came from, for the folder or beside the file."""
    source = use.weights / "model.safetensors" if use.weights.is_dir() else use.weights
    stage = "lora" if use.adapters else sidecar_of(use.weights).get("stage")  # it decides how they are spoken to
    return {
        "version": checkpoint.SIDECAR_VERSION,
        "format": config.format,
        **({"stage": stage} if stage else {}),
        "dtype": dtype,
        "tokenizer_sha256": use.words.sha256,
        "exported_from": {"name": use.weights.name, "sha256": sha256_file(source) if source.is_file() else None},
        "adapters": [
            {"name": path.name, "sha256": sha256_file(path), "asked": asked}
            for path, asked in zip(use.adapters, config.from_lora, strict=True)
        ],
    }


def _must_be_equal(read: Mapping[str, Tensor], stored: Mapping[str, Tensor], what: str) -> None:
    differ = [name for name, value in stored.items() if not torch.equal(read[name], value.float())]
    if differ:
        raise proof.failed(what, f"{differ[0]} came back with other numbers")


def _give_new_name(made: Path, final: Path) -> None:
    """Give a finished file its name, which nothing else has."""
    try:
        os.link(made, final)
    except FileExistsError:
        raise
    except OSError:  # a disk without hard links
        made.rename(final)
    fsync_dir(final.parent)


def _leave_tokenizer(words: Tokenizer, folder: Path) -> list[str]:
    """Put the tokenizer where the weights' readers look for it, unless one is there."""
    beside = folder / "tokenizer"
    if not beside.exists():
        for name in TOKENIZER_FILES:
            beside.mkdir(parents=True, exist_ok=True)
            publish(beside / name, files_of(words)[name], mode=0o644)
        return [f"its tokenizer is in {beside}"]
    if (beside / TOKENIZER_FILES[0]).is_file() and Tokenizer(beside).sha256 == words.sha256:
        return []
    return [f"{beside} is another tokenizer: use these weights with --tokenizer {words.folder}"]
