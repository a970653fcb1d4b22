"""What only a GPU can show. Skipped where there is none."""

import json
import shutil

import pytest
import torch

from minimind import fitting
from minimind.config import ModelConfig
from minimind.model import MiniMind, attend, attend_padded
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


def test_the_path_taken_on_a_gpu_is_the_padded_one_and_equals_document_by_document():
    q, k, v = (torch.randn(1, 4, 30, 16, device="cuda") for _ in range(3))
    assert torch.equal(attend(q, k, v, [10, 20]), attend_padded(q, k, v, [10, 20]))
    alone = torch.cat([attend(*(x[:, :, s] for x in (q, k, v)), None) for s in (slice(0, 10), slice(10, 30))], dim=2)
    assert (attend(q, k, v, [10, 20]) - alone).abs().max() < 1e-3


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
