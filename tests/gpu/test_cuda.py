"""What only a GPU can show. Skipped where there is none."""

import dataclasses
import json
import shutil

import pytest
import torch

from minimind import fitting, probe
from minimind.attention import WAYS, Dense
from minimind.config import ModelConfig
from minimind.model import MiniMind
from minimind.sampling import Batch, Sampling, generate_all
from minimind.saving import snapshot
from tests.support import corpus
from tests.support.corpus import TINY

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return corpus.make(tmp_path_factory.mktemp("cuda"))


def test_packed_logits_and_gradients_equal_those_of_the_cpu_in_fp32():
    torch.manual_seed(0)
    config = ModelConfig.for_arch("minimind2", hidden_size=64, num_hidden_layers=2, vocab_size=300)
    model, lengths = MiniMind(config), [5, 40, 1, 17]
    ids = torch.randint(0, 300, (1, sum(lengths)))
    found = []
    for device in ("cpu", "cuda"):
        model.to(device).zero_grad(set_to_none=True)
        logits = model(ids.to(device), lengths=lengths)
        logits.square().mean().backward()
        found.append((logits.detach().cpu(), *(p.grad.cpu() for p in model.parameters())))
    for cpu, cuda in zip(*found, strict=True):
        assert (cpu - cuda).abs().max() < 1e-4


LENGTHS = (5, 130, 1, 64, 3, 90)


@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 1e-4), ("float16", 5e-3), ("bfloat16", 5e-2)])
def test_every_way_of_attending_gives_the_same_values_and_gradients_by_its_real_kernel(dtype, tolerance):
    torch.manual_seed(0)
    device = torch.device("cuda")
    exact = [torch.randn(1, heads, sum(LENGTHS), 64, device=device) for heads in (8, 2, 2)]
    weight = torch.randn_like(exact[0])
    found = {}
    for name, way in {"wanted": Dense, **WAYS}.items():
        if (name, dtype) == ("varlen", "float32"):
            continue
        taken = torch.float32 if name == "wanted" else getattr(torch, dtype)
        q, k, v = (x.to(taken).requires_grad_() for x in exact)
        out = way(LENGTHS, device).attend(q, k, v)
        found[name] = (out, *torch.autograd.grad((out * weight.to(taken)).sum(), (q, k, v)))
    for name, tensors in found.items():
        for one, other in zip(tensors, found["wanted"], strict=True):
            assert probe.difference(one.detach(), other.detach()) <= tolerance, name


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize(("way", "dtype"), [("varlen", "bfloat16"), ("flex", "bfloat16"), ("flex", "float32")])
def test_the_trial_finds_a_way_right_on_this_gpu(way, dtype, compiled):
    model = ModelConfig.for_arch("minimind2", hidden_size=512, num_hidden_layers=1, vocab_size=300)
    request = {"way": way, "model": dataclasses.asdict(model), "device": "cuda:0", "dtype": dtype}
    assert probe.tried({**request, "compiled": compiled, "deterministic": False}) is None


@pytest.mark.parametrize("stage", ["pretrain", "full_sft", "dpo", "lora"])
def test_a_training_chooses_varlen_says_so_and_learns_what_it_learns_by_padding(folder, stage, monkeypatch, capsys):
    flags = ("--hidden_size", "512", "--num_hidden_layers", "1", "--accumulation_steps", "1", "--batch_size", "8")
    flags = (*flags, "--from_weight", "none", "--dtype", "bfloat16")
    varlen = corpus.train_here(folder, stage, *flags, run=f"varlen-{stage}")
    assert "attention: varlen, tried on this GPU" in capsys.readouterr().out
    monkeypatch.setattr(probe, "PREFERRED", ())
    padded = corpus.train_here(folder, stage, *flags, run=f"padded-{stage}")
    for one, other in zip(varlen, padded, strict=True):
        assert one["loss"] == pytest.approx(other["loss"], rel=5e-2)


@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 1e-3), ("bfloat16", 5e-2)])
def test_training_follows_the_cpu_within_the_types_precision_and_tells_its_mfu(folder, dtype, tolerance):
    flags = (*TINY, "--accumulation_steps", "1", "--batch_size", "8", "--epochs", "2", "--from_weight", "none")
    cpu = corpus.train_here(folder, "pretrain", *flags, "--device", "cpu", run=f"cpu-{dtype}")
    gpu = corpus.train_here(folder, "pretrain", *flags, "--device", "cuda", "--dtype", dtype, run=f"cuda-{dtype}")
    for one, other in zip(cpu, gpu, strict=True):
        assert one["loss"] == pytest.approx(other["loss"], rel=tolerance)


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="fewer than two CUDA devices")
def test_two_gpus_equal_one_with_twice_the_accumulation(folder):
    flags = (*TINY, "--batch_size", "3", "--epochs", "2", "--dtype", "float32")
    one = corpus.train_here(folder, "pretrain", *flags, "--accumulation_steps", "4", run="one-gpu")
    corpus.train_apart(folder, "pretrain", *flags, "--accumulation_steps", "2", run="two-gpus", nproc=2)
    for a, b in zip(one, corpus.metrics(folder / "runs" / "two-gpus"), strict=True):
        assert a["loss"] == pytest.approx(b["loss"], rel=1e-4)


@pytest.mark.parametrize("arch", ["minimind2", "minimind3"])
def test_sampling_on_a_gpu_gives_the_cpus_texts_by_a_captured_step(arch):
    torch.manual_seed(0)
    config = ModelConfig.for_arch(arch, hidden_size=64, num_hidden_layers=2, vocab_size=300)
    model = MiniMind(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(3)
    prompts = [torch.randint(3, 300, (n,)).tolist() for n in (4, 40, 11)]
    sampling = Sampling(max_new_tokens=300, stop_ids=frozenset())  # beyond the first 256 columns: captured twice
    cpu = generate_all(model, prompts, sampling)
    model.cuda()
    assert generate_all(model, prompts, sampling) == cpu
    batch = Batch(model)
    for prompt in prompts:
        batch.join(prompt, sampling)
    batch.step()
    assert batch.stepper.static and batch.stepper.graphs


def test_a_mixture_of_experts_is_sampled_without_a_graph():
    torch.manual_seed(0)
    config = ModelConfig.for_arch("minimind2", hidden_size=64, num_hidden_layers=2, vocab_size=300, use_moe=True)
    model = MiniMind(config).eval().cuda()
    assert len(generate_all(model, [[5, 6]], Sampling(max_new_tokens=9, stop_ids=frozenset()))[0]) == 9
    assert not Batch(model).stepper.static


def test_a_snapshot_of_a_gpu_is_that_of_its_step_although_the_next_update_is_queued_at_once():
    weights = torch.ones(1 << 24, device="cuda")
    copied, arrived = snapshot({"w": weights})
    weights.mul_(2.0)  # queued behind the copy
    arrived.synchronize()
    assert copied["w"].device.type == "cpu" and bool((copied["w"] == 1).all()) and bool((weights == 2).all())


def test_batches_come_ahead_in_pinned_memory_and_a_resume_from_a_save_aside_is_exact(folder):
    flags = (*TINY, "--accumulation_steps", "1", "--batch_size", "4", "--epochs", "2", "--from_weight", "none")
    flags = (*flags, "--dtype", "float32", "--deterministic", "--save_interval", "3")
    whole = corpus.train_here(folder, "pretrain", *flags, run="aside-whole")
    corpus.train_here(folder, "pretrain", *flags, "--max_steps", "7", run="aside")
    shutil.rmtree(folder / "runs" / "aside" / "ckpt" / "step-00000007")  # step 6 was written beside the training
    again = corpus.train_here(folder, "pretrain", *flags, run="aside")
    assert [line["loss"] for line in again] == [line["loss"] for line in whole]


def test_auto_finds_a_bound_that_runs_and_learns_the_same(folder, monkeypatch, capsys):
    flags = (*TINY, "--accumulation_steps", "2", "--batch_size", "6", "--from_weight", "none", "--dtype", "float32")
    plain = corpus.train_here(folder, "pretrain", *flags, run="auto-plain")
    auto = corpus.train_here(folder, "pretrain", *flags, "--max_tokens_per_batch", "auto", run="auto")
    assert "--max_tokens_per_batch auto: passes of" in capsys.readouterr().out
    # all but 40 MB of the memory is kept free: the step has to be cut
    total_bytes = torch.cuda.get_device_properties(0).total_memory
    free_bytes = torch.cuda.mem_get_info()[0] + torch.cuda.memory_reserved()
    monkeypatch.setattr(fitting, "KEPT_FREE", (free_bytes - 40e6) / total_bytes)
    cut = corpus.train_here(folder, "pretrain", *flags, "--max_tokens_per_batch", "auto", run="auto-cut")
    for lines in (auto, cut):
        for ours, theirs in zip(lines, plain, strict=True):
            assert ours["loss"] == pytest.approx(theirs["loss"], rel=1e-5)


def test_a_trace_holds_the_gpus_kernels_too(folder):
    flags = (*TINY, "--accumulation_steps", "1", "--batch_size", "3", "--from_weight", "none", "--profile")
    corpus.train_here(folder, "pretrain", *flags, run="traced")
    (path,) = (folder / "runs" / "traced" / "profile").iterdir()
    events = json.loads(path.read_text())["traceEvents"]
    assert any(event.get("cat") == "kernel" for event in events)
