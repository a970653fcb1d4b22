"""Weights read without torch: what torch.save and safetensors write passes, whatever is wrong with it is named."""

import pickle
import zipfile

import pytest

from launch.weights import Unusable, examine

torch = pytest.importorskip("torch")
DTYPES = [torch.float16, torch.bfloat16, torch.float32, torch.float64]


def state(dtype=torch.float16):
    base = torch.randn(40, 8).to(dtype)
    return {"model.a": base, "model.b": base.t(), "model.c": base[3:5], "ids": torch.arange(7), "none": torch.empty(0)}


def saved(tmp_path, value):
    torch.save(value, tmp_path / "w.pth")
    return tmp_path / "w.pth"


@pytest.mark.parametrize("dtype", DTYPES)
def test_what_torch_saves_passes_and_one_bad_number_among_many_does_not(tmp_path, dtype):
    assert examine(saved(tmp_path, state(dtype))) == 5
    largest = torch.full((3_000_000,), torch.finfo(dtype).max, dtype=dtype)
    assert examine(saved(tmp_path, {"x": largest})) == 1
    for bad in (float("nan"), float("inf"), -float("inf")):
        largest[2_345_678] = bad
        with pytest.raises(Unusable, match="NaN or infinite"):
            examine(saved(tmp_path, {"x": largest}))


def test_an_optimisers_state_parameters_and_a_model_pass(tmp_path):
    model = torch.nn.Linear(4, 4)
    optimiser = torch.optim.AdamW(model.parameters())
    model(torch.ones(4)).sum().backward()
    optimiser.step()
    rng = torch.get_rng_state()
    value = {"optimizer": optimiser.state_dict(), "model": model.state_dict(), "p": dict(model.named_parameters())}
    assert examine(saved(tmp_path, {**value, "rng": rng, "step": 3, "lr": 1e-3})) > 8


def test_safetensors_pass_and_are_looked_into(tmp_path):
    save_file = pytest.importorskip("safetensors.torch").save_file
    path = tmp_path / "w.safetensors"
    good = {"a": torch.randn(5, 3), "b": torch.arange(4)}
    save_file(good, path)
    assert examine(path) == 2
    path.write_bytes(path.read_bytes()[:-4])
    with pytest.raises(Unusable):
        examine(path)
    save_file({**good, "a": torch.tensor([1.0, float("nan")])}, path)
    with pytest.raises(Unusable, match="NaN"):
        examine(path)


def test_a_truncated_or_flipped_file_is_named(tmp_path):
    path = saved(tmp_path, state(torch.float32))
    data = path.read_bytes()
    for broken in (b"", data[:1000], data[:-30], b"not a zip" * 100):
        path.write_bytes(broken)
        with pytest.raises(Unusable):
            examine(path)
    with zipfile.ZipFile(saved(tmp_path, state(torch.float32))) as archive:
        info = archive.getinfo("w/data/0")
    flipped = bytearray(data)
    flipped[info.header_offset + 200] ^= 1
    path.write_bytes(flipped)
    with pytest.raises(Unusable, match="CRC"):
        examine(path)


def test_a_pickle_that_wants_to_run_something_is_refused_unrun(tmp_path):
    class Evil:
        def __reduce__(self):
            return (open, (str(tmp_path / "pwned"), "w"))

    path = tmp_path / "w.pth"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("w/data.pkl", pickle.dumps({"a": Evil()}))
    with pytest.raises(Unusable, match="no weights need"):
        examine(path)
    assert not (tmp_path / "pwned").exists()


def test_shapes_that_reach_outside_their_storage_are_refused(tmp_path):
    path = saved(tmp_path, {"x": torch.zeros(4, 4)})
    with zipfile.ZipFile(path) as archive:
        parts = {name: archive.read(name) for name in archive.namelist()}
    parts["w/data.pkl"] = parts["w/data.pkl"].replace(b"K\x04K\x04\x86", b"K\x04K\x7f\x86")
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in parts.items():
            archive.writestr(name, data)
    with pytest.raises(Unusable, match="does not fit"):
        examine(path)


def test_a_file_without_any_tensor_is_no_weights(tmp_path):
    with pytest.raises(Unusable, match="no tensor"):
        examine(saved(tmp_path, {"step": 1}))
