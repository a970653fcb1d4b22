"""Every way of attending gives the same losses and gradients, and each document sees itself alone."""

import pytest
import torch
import torch.nn.functional as F
from torch.nn.attention.flex_attention import create_block_mask

from minimind import attention, lora, model
from minimind.attention import WAYS, ByDocument, Flex, Varlen, block_mask
from minimind.config import ModelConfig
from minimind.model import Block, MiniMind, rotary_tables
from tests.support import corpus
from tests.support.corpus import TINY
from tests.support.kernels import gpu_kernels  # noqa: F401

CPU = torch.device("cpu")
LENGTHS = (5, 130, 1, 64, 3, 90)  # blocks of 128 with one document, with several, and a last one that is not full
MODELS = {
    "minimind3": ("minimind3", False),
    "mixture": ("minimind2", True),
    "lora": ("minimind2", False),
}

pytestmark = pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")


def assert_close(found, wanted, *, within=1e-5):
    for one, other in zip(found, wanted, strict=True):
        assert (one - other).abs().max() <= within * max(1.0, other.abs().max())


@pytest.mark.parametrize("shared", [1, 2, 4])
def test_every_way_attends_alike_whatever_heads_share_their_keys(gpu_kernels, shared):  # noqa: F811
    torch.manual_seed(0)
    q, k, v = (torch.randn(1, heads, sum(LENGTHS), 16, requires_grad=True) for heads in (4, 4 // shared, 4 // shared))
    weight = torch.randn_like(q)
    found = {}
    for name, way in WAYS.items():
        out = way(LENGTHS, CPU).attend(q, k, v)
        found[name] = (out, *torch.autograd.grad((out * weight).sum(), (q, k, v)))
    assert set(found) == {"document by document", "padded", "dense", "varlen", "flex"}
    for tensors in found.values():
        assert_close(tensors, found["dense"])


def summed(made, texts, wanted):
    """The loss of documents as rows of one batch, the shorter ones padded."""
    padded = torch.nn.utils.rnn.pad_sequence(texts, batch_first=True)
    real = torch.arange(padded.shape[1]) < torch.tensor([len(text) for text in texts])[:, None]
    return F.cross_entropy(made(padded)[real], torch.cat(wanted), reduction="sum")


@pytest.mark.parametrize("kind", MODELS)
def test_packed_in_every_way_padded_bucketed_and_alone_give_one_loss_and_one_gradient(gpu_kernels, kind):  # noqa: F811
    torch.manual_seed(1)
    arch, use_moe = MODELS[kind]
    config = ModelConfig.for_arch(arch, hidden_size=64, num_hidden_layers=2, vocab_size=300, use_moe=use_moe)
    made = MiniMind(config).train()
    if kind == "lora":
        lora.inject(made, rank=4)
        for name, parameter in made.named_parameters():
            if "lora" in name:
                torch.nn.init.normal_(parameter, std=0.1)
    trained = [p for p in made.parameters() if p.requires_grad]
    ids, targets = torch.randint(0, 300, (1, sum(LENGTHS))), torch.randint(0, 300, (sum(LENGTHS),))
    losses = {}
    for name, way in WAYS.items():
        made.way = way
        losses[name] = F.cross_entropy(made(ids, lengths=LENGTHS)[0], targets, reduction="sum")
    made.way = None
    texts, wanted = ids[0].split(list(LENGTHS)), targets.split(list(LENGTHS))
    by_length = sorted(range(len(LENGTHS)), key=LENGTHS.__getitem__)
    for name, groups in {
        "alone": [[number] for number in by_length],
        "padded rows": [by_length],
        "bucketed by length": [by_length[:3], by_length[3:]],
    }.items():
        losses[name] = sum(summed(made, [texts[i] for i in group], [wanted[i] for i in group]) for group in groups)
    found = {name: (loss, *torch.autograd.grad(loss, trained, allow_unused=True)) for name, loss in losses.items()}
    for tensors in found.values():
        assert_close(tensors, found["alone"], within=2e-5)


@pytest.mark.parametrize("stage", ["dpo", "mixture"])
def test_a_training_learns_the_same_by_varlen_as_document_by_document(
    gpu_kernels,  # noqa: F811
    stage,
    monkeypatch,
    folder,
):
    flags = (*TINY, "--from_weight", "none", "--max_steps", "2", "--accumulation_steps", "1", "--batch_size", "4")
    name, flags = ("pretrain", (*flags, "--use_moe", "1")) if stage == "mixture" else (stage, flags)
    usual = corpus.train_here(folder, name, *flags, run=f"usual-{stage}")
    seen = []
    monkeypatch.setattr(model, "usual", lambda device: seen.append(device) or Varlen)
    varlen = corpus.train_here(folder, name, *flags, run=f"varlen-{stage}")
    assert seen
    for ours, theirs in zip(varlen, usual, strict=True):
        assert ours["loss"] == pytest.approx(theirs["loss"], rel=1e-5)
        assert ours["grad_norm"] == pytest.approx(theirs["grad_norm"], rel=1e-3)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return corpus.make(tmp_path_factory.mktemp("attention"))


@pytest.mark.parametrize("way", [Varlen, Flex])
def test_under_autocast_a_kernel_gets_its_type_whatever_the_layers_gave(gpu_kernels, way):  # noqa: F811
    row = way(LENGTHS, CPU)
    kernel, seen = row.kernel, set()
    row.kernel = lambda *tensors, **more: seen.update(x.dtype for x in tensors[:3]) or kernel(*tensors, **more)
    q, k, v = (
        torch.randn(1, 2, sum(LENGTHS), 16, dtype=dtype) for dtype in (torch.float32, torch.bfloat16, torch.half)
    )
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert row.attend(q, k, v).dtype == torch.bfloat16
    assert seen == {torch.bfloat16}


def test_positions_begin_anew_with_each_document():
    row = ByDocument((3, 1, 2), CPU)
    assert row.position.tolist() == [0, 1, 2, 0, 0, 1] and row.document.tolist() == [0, 0, 0, 1, 2, 2]


@pytest.mark.parametrize("lengths", [LENGTHS, (1,) * 300, (128, 128, 256), (500,), (127, 129, 1, 383)])
def test_the_blocks_that_flex_computes_are_those_that_torch_finds_in_the_whole_mask(lengths):
    document = Flex(lengths, CPU).document
    ours = block_mask(document)
    theirs = create_block_mask(ours.mask_mod, None, None, len(document), len(document), device="cpu")
    for name in ("kv_num_blocks", "full_kv_num_blocks", "q_num_blocks", "full_q_num_blocks"):
        assert torch.equal(getattr(ours, name), getattr(theirs, name)), name
    for count, which in (("kv_num_blocks", "kv_indices"), ("full_kv_num_blocks", "full_kv_indices")):
        for number, one, other in zip(
            *(getattr(ours, count)[0, 0], getattr(ours, which)[0, 0], getattr(theirs, which)[0, 0]), strict=True
        ):
            assert one[:number].tolist() == other[:number].tolist()


def test_varlen_is_told_one_of_few_shapes_and_values():
    told = {(len(row.bounds), row.longest) for row in (Varlen((n,) * 40, CPU) for n in range(1, 129))}
    assert told == {(65, 128)}
    assert len(Varlen((2,) * 65, CPU).bounds) == 129 and Varlen((1, 129), CPU).longest == 256


@pytest.mark.parametrize(("way", "device"), [(Varlen, "meta"), (Flex, "cpu")])
def test_other_documents_are_no_reason_to_compile_a_block_anew(way, device, monkeypatch):
    if device == "meta":  # which has every kernel's shapes, and no autocast
        monkeypatch.setattr(attention, "lowered", lambda x: x)
    torch._dynamo.reset()
    config = ModelConfig.for_arch("minimind2", hidden_size=64, num_hidden_layers=1, vocab_size=300)
    block = Block(config, 0).to(device).requires_grad_(False)
    counter = torch._dynamo.testing.CompileCounter()
    compiled, counts = torch.compile(block, backend=counter), []
    for lengths in ((5, 130, 1), (100, 109, 40, 2, 60), (3, 3, 40) * 4, (90, 100, 110, 27, 1), (9,) * 50):
        row = way(lengths, torch.device(device))
        tables = rotary_tables(config, row.position)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            out = compiled(torch.randn(1, sum(lengths), 64, device=device), tables, row, None)
        assert out.shape == (1, sum(lengths), 64)
        counts.append(counter.frame_count)
    assert counts[-1] == counts[1]  # the first row as it is, the second for any
