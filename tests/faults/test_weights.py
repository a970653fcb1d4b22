"""Files that are not what they should be: refused in a paragraph, nothing in them run, memory bounded."""

import io
import os
import pickle
import random
import shutil
import subprocess
import tracemalloc
import zipfile
from pathlib import Path

import pytest
import torch

from minimind import checkpoint, lora
from minimind.config import ModelConfig
from minimind.durable import sha256_file
from minimind.model import MiniMind
from minimind.rundir import Reason, RunDir, RunError
from tests.support import corpus


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    torch.manual_seed(1)
    config = ModelConfig.for_arch("minimind2", hidden_size=64, num_hidden_layers=2, vocab_size=300)
    path = tmp_path_factory.mktemp("weights") / "full_sft_64.pth"
    torch.save({name: value.half() for name, value in MiniMind(config).state_dict().items()}, path)
    return path


def refused(path, *told, reason=Reason.DATA_INVALID):
    with pytest.raises(RunError) as error:
        checkpoint.load_model(path)
    assert error.value.reason is reason
    assert all(text in str(error.value) for text in told), str(error.value)


class Evil:
    def __init__(self, command):
        self.command = command

    def __reduce__(self):
        return os.system, (self.command,)


def test_a_pickle_that_would_run_a_command_runs_nothing(tmp_path):
    mark = tmp_path / "ran"
    for name, save in (("zip.pth", torch.save), ("raw.pth", lambda value, path: path.write_bytes(pickle.dumps(value)))):
        save({"model.norm.weight": Evil(f"touch {mark}")}, tmp_path / name)
        refused(tmp_path / name, "no weights file")
    assert not mark.exists()


def test_a_pickle_that_doubles_a_text_twenty_times_is_refused_before_it_does(tmp_path):
    depth, path = 21, tmp_path / "bomb.pth"
    calls = b"c_codecs\nencode\n" * depth + b"U\x10" + b"A" * 16 + b"U\x03hex\x86R" * depth
    for name in ("data.pkl", None):
        if name:
            with zipfile.ZipFile(path, "w") as archive:
                archive.writestr("w/data.pkl", b"\x80\x02" + calls + b".")
                archive.writestr("w/version", "3\n")
        else:
            path.write_bytes(b"\x80\x02" + calls + b".")
        tracemalloc.start()
        refused(path, "_codecs.encode")
        _, peak_bytes = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert peak_bytes < 1 << 20


def test_an_archive_that_grows_when_unpacked_is_refused_before_it_does(tmp_path, good):
    bomb = tmp_path / "bomb.pth"
    with zipfile.ZipFile(good) as source, zipfile.ZipFile(bomb, "w", zipfile.ZIP_DEFLATED) as target:
        for entry in source.infolist():
            data = source.read(entry)
            target.writestr(entry.filename, bytes(256 << 20) if entry.filename.endswith("/data/0") else data)
    assert bomb.stat().st_size < 4 << 20
    tracemalloc.start()
    refused(bomb, "compressed")
    assert tracemalloc.get_traced_memory()[1] < 16 << 20
    tracemalloc.stop()


def test_names_that_lead_out_of_the_archive_write_nothing(tmp_path, good):
    evil = tmp_path / "evil.pth"
    shutil.copy(good, evil)
    with zipfile.ZipFile(evil, "a") as archive:
        archive.writestr("../../escaped", b"x")
    refused(evil, "no weights file")
    assert not (tmp_path.parent.parent / "escaped").exists() and not (tmp_path.parent / "escaped").exists()


@pytest.mark.parametrize("what", [[1, 2], {"a": 1}, {"a": {"b": torch.zeros(1)}}, torch.zeros(3), {1: torch.zeros(1)}])
def test_anything_but_a_flat_dictionary_of_tensors_is_refused(tmp_path, what):
    torch.save(what, tmp_path / "odd.pth")
    refused(tmp_path / "odd.pth", "flat dictionary")


def test_missing_left_over_and_misshapen_tensors_are_named(tmp_path, good):
    state = torch.load(good, weights_only=True)
    lacking = {k: v for k, v in state.items() if k != "model.layers.1.mlp.up_proj.weight"}
    more = state | {"model.layers.0.mlp.extra.weight": torch.zeros(2)}
    other = state | {"model.norm.weight": torch.zeros(65)}
    for name, changed, told in (
        ("lacking.pth", lacking, "missing model.layers.1.mlp.up_proj.weight"),
        ("more.pth", more, "unexpected model.layers.0.mlp.extra.weight"),
        ("other.pth", other, "model.norm.weight is (65,), the model's is (64,)"),
    ):
        torch.save(changed, tmp_path / name)
        refused(tmp_path / name, told)


def test_no_file_a_folder_and_an_empty_file_are_told_apart(tmp_path):
    refused(tmp_path / "none.pth", "does not exist", reason=Reason.DATA_MISSING)
    refused(tmp_path, "is a folder", reason=Reason.DATA_MISSING)
    (tmp_path / "empty.pth").touch()
    refused(tmp_path / "empty.pth", "no weights file")


def test_a_file_cut_anywhere_is_refused_and_never_loads_half(tmp_path, good):
    data, rng = good.read_bytes(), random.Random(3)
    for _ in range(25):
        (tmp_path / "cut.pth").write_bytes(data[: rng.randrange(len(data))])
        refused(tmp_path / "cut.pth")


def test_a_model_is_no_adapter_and_an_adapter_no_model(tmp_path, good):
    model = checkpoint.load_model(good)
    with pytest.raises(RunError, match="no adapter"):
        lora.apply(model, good)
    lora.inject(model, rank=4)
    torch.save(lora.adapter_state(model), tmp_path / "adapter.pth")
    refused(tmp_path / "adapter.pth", "--from_lora")


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
@pytest.mark.parametrize("rank", [8, 16])
def test_adapters_of_both_generations_files_load_and_merge_to_the_same_logits(tmp_path, good, dtype, rank):
    model = checkpoint.load_model(good)
    lora.inject(model, rank=rank)
    for name, parameter in model.named_parameters():
        if name.endswith("lora.B.weight"):
            torch.nn.init.normal_(parameter, std=0.02)
    torch.save({k: v.to(dtype) for k, v in lora.adapter_state(model).items()}, tmp_path / "lora.pth")
    read = checkpoint.load_model(good)
    lora.apply(read, tmp_path / "lora.pth")
    ids = torch.randint(0, 300, (1, 20))
    with torch.no_grad():
        before = checkpoint.load_model(good)(ids)
        assert (read(ids) - model(ids)).abs().max() < 2e-3 < (read(ids) - before).abs().max()
        expected = read(ids)
        lora.merge(read)
        assert set(read.state_dict()) == set(checkpoint.load_model(good).state_dict())
        assert (read(ids) - expected).abs().max() < 1e-5


def test_any_damage_to_the_newest_checkpoint_means_the_one_before_and_says_so(tmp_path):
    run, rng = RunDir(tmp_path / "run"), random.Random(11)
    run.root.mkdir()
    for step in (2, 4):
        parameters = {"w": torch.full((500,), float(step))}
        checkpoint.save(run, step=step, state={}, parameters=parameters, optimizer={"t": torch.ones(9)}, keep=3)
    newest = run.checkpoints / "step-00000004"
    whole = {path.name: path.read_bytes() for path in newest.iterdir()}
    for _ in range(100):
        name = rng.choice(sorted(whole))
        data = bytearray(whole[name])
        if rng.random() < 0.5:
            data = data[: rng.randrange(len(data))]
        else:
            data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
        (newest / name).write_bytes(data)
        said = []
        found = checkpoint.latest(run, say=said.append)
        assert found.step == 2 and float(found.parameters["w"][0]) == 2.0
        assert said and "step-00000004" in said[0]
        (newest / name).write_bytes(whole[name])
    assert checkpoint.latest(run, say=said.append).step == 4


def test_a_checkpoint_that_cannot_be_written_leaves_the_last_one_and_nothing_else(tmp_path):
    run = RunDir(tmp_path / "run")
    run.root.mkdir()
    checkpoint.save(run, step=2, state={}, parameters={"w": torch.ones(3)}, optimizer={}, keep=3)
    before = {path: sha256_file(path) for path in run.checkpoints.rglob("*") if path.is_file()}

    class Unwritable(io.IOBase):
        def __reduce__(self):
            raise OSError(28, "No space left on device")

    with pytest.raises(RunError, match=r"the disk is full: a checkpoint needs 12 bytes, [\d,]+ are free"):
        checkpoint.save(run, step=4, state={}, parameters={"w": torch.ones(3)}, optimizer=Unwritable(), keep=3)
    assert {path: sha256_file(path) for path in run.checkpoints.rglob("*") if path.is_file()} == before


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting a small disk needs root")
def test_a_full_disk_during_a_save_is_disk_full_and_the_last_checkpoint_is_whole(tmp_path):
    folder = corpus.make(tmp_path / "work")
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", disk], check=False, capture_output=True
    ).returncode:
        pytest.skip("tmpfs cannot be mounted here")
    try:
        flags = (
            *corpus.TINY,
            "--save_interval",
            "1",
            "--keep_checkpoints",
            "9",
            "--accumulation_steps",
            "1",
            "--batch_size",
            "4",
        )
        done = subprocess.run(
            corpus.command("pretrain", *flags, "--run_dir", str(disk / "run")),
            cwd=folder,
            env=corpus.environ(),
            capture_output=True,
            text=True,
            check=False,
            timeout=120,
        )
        assert done.returncode == 6 and "the disk is full" in done.stderr and "Traceback" not in done.stderr
        run = RunDir(disk / "run")
        steps = run.checkpoint_steps()
        assert steps and checkpoint.latest(run, say=print).step == steps[-1]
    finally:
        subprocess.run(["umount", disk], check=True)


def test_a_name_means_its_only_size_and_otherwise_says_what_there_is(tmp_path):
    for name in ("full_sft_64.pth", "full_sft_512.pth", "rlhf_64_moe.pth", "rlhf_more_64.pth"):
        (tmp_path / name).touch()
    assert checkpoint.find_weights("rlhf", tmp_path) == tmp_path / "rlhf_64_moe.pth"
    assert checkpoint.find_weights("x/y.pth", tmp_path) == Path("x/y.pth")
    with pytest.raises(RunError, match="2 sizes of weights"):
        checkpoint.find_weights("full_sft", tmp_path)
    with pytest.raises(RunError, match="no weights by the name 'pretrain'"):
        checkpoint.find_weights("pretrain", tmp_path)
