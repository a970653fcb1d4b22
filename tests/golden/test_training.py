"""Per-step loss, rate and gradient norm against plain AdamW loops on transformers, written apart from the product.

The loops below pad, mask and average as the original does; what they share with ours is the order of samples alone.
"""

import json
import math

import numpy as np
import pytest
import tokenizers
import torch
import torch.nn.functional as F
import transformers

from minimind import shards, tokenizer
from minimind.batches import Order
from tests.support import corpus
from tests.support.corpus import TINY

STEPS_TOLERANCE = 2e-5


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    made = corpus.make(tmp_path_factory.mktemp("golden"))
    corpus.train_here(made, "pretrain", *TINY, "--epochs", "1", run="base")
    (made / "out" / "pretrain_64.pth").rename(made / "out" / "base_64.pth")
    return made


def llama(folder, name: str) -> transformers.LlamaForCausalLM:
    state = torch.load(folder / "out" / name, weights_only=True)
    config = transformers.LlamaConfig(
        vocab_size=state["lm_head.weight"].shape[0],
        hidden_size=64,
        intermediate_size=state["model.layers.0.mlp.gate_proj.weight"].shape[0],
        num_hidden_layers=2,
        num_attention_heads=8,
        num_key_value_heads=2,
        rms_norm_eps=1e-5,
        rope_parameters={"rope_type": "default", "rope_theta": 1e6},
        max_position_embeddings=32768,
        tie_word_embeddings=True,
    )
    model = transformers.LlamaForCausalLM(config).float()
    model.load_state_dict({k: v.float() for k, v in state.items()})
    return model.train()


class Words:
    """The tokenizer file with nothing of ours around it; the chat format is spelled out."""

    def __init__(self, folder):
        self.backend = tokenizers.Tokenizer.from_file(str(folder / "out" / "tokenizer" / "tokenizer.json"))
        self.header = self.ids("<|im_start|>assistant")
        self.end = self.ids("<|im_end|>")

    def ids(self, text: str) -> list[int]:
        return self.backend.encode(text).ids

    def chat(self, messages) -> list[int]:
        rest = messages
        text = "<|im_start|>system\nYou are a helpful assistant<|im_end|>\n"
        if messages[0]["role"] == "system":
            text, rest = f"<|im_start|>system\n{messages[0]['content']}<|im_end|>\n", messages[1:]
        for user, answer in zip(rest[::2], rest[1::2], strict=True):
            text += f"<|im_start|>user\n{user['content']}<|im_end|>\n"
            text += f"<|im_start|>assistant\n{answer['content']}<|im_end|>\n"
        return self.ids(text)

    def row(self, ids: list[int], length: int, *, answers: bool) -> tuple[list[int], list[int]]:
        """Padded ids and 0/1 per position: scan for the header, then to the end token, as the original does."""
        ids = ids[:length]
        mask = [0 if answers else 1] * len(ids)
        i = 0
        while answers and i < len(ids):
            if ids[i : i + len(self.header)] == self.header:
                end = i + len(self.header)
                while end < len(ids) and ids[end : end + 1] != self.end:
                    end += 1
                for j in range(i + len(self.header) + 1, min(end + 2, len(ids))):
                    mask[j] = 1
                i = end
            i += 1
        pad = length - len(ids)
        return ids + [0] * pad, mask + [0] * pad


def rate(peak: float, micro: int, total: int) -> float:
    return peak / 10 + 0.5 * peak * (1 + math.cos(math.pi * micro / total))


def rate3(peak: float, micro: int, total: int) -> float:
    return peak * (0.1 + 0.45 * (1 + math.cos(math.pi * (micro + 1) / total)))


def order(samples: int, batch: int, accumulation: int, epochs: int) -> Order:
    return Order(samples=samples, batch_size=batch, micro_batches_per_step=accumulation, epochs=epochs, seed=42)


def rows_of(words, lines, *, key, length):
    if key == "text":
        return [words.row(words.ids(line["text"]), length, answers=False) for line in lines]
    if key == "wrapped":
        return [words.row([1, *words.ids(line["text"])[: length - 2], 2], length, answers=False) for line in lines]
    return [words.row(words.chat(line["conversations"]), length, answers=True) for line in lines]


def plain_sft(
    folder, model, lines, *, key, batch, accumulation, epochs, peak, length, schedule=rate, heavy=(), teacher=None
):
    """Padded rows, token losses, one AdamW; yields (loss, lr, norm) of each step.

    ``heavy``: ids that weigh ten wherever they are predicted (the original's reason stage). ``teacher``: a model to
    distil from with (alpha, temperature).
    """
    words = Words(folder)
    rows = rows_of(words, lines, key=key, length=length)
    optimizer = torch.optim.AdamW(model.parameters(), lr=peak)
    plan = order(len(rows), batch, accumulation, epochs)
    for number in range(1, plan.total_steps + 1):
        step = plan.step(number)
        lr = schedule(peak, step.last_micro_batch, plan.total_micro_batches)
        total = sum(sum(rows[i][1][1:]) for micro in step.micro_batches for i in micro)
        loss_sum = 0.0
        for micro in step.micro_batches:
            ids = torch.tensor([rows[i][0] for i in micro])
            mask = torch.tensor([rows[i][1] for i in micro])[:, 1:].float()
            logits = model(ids[:, :-1]).logits
            per_token = F.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten(), reduction="none").view_as(mask)
            if heavy:
                mask[torch.isin(ids[:, 1:], torch.tensor(sorted(heavy)))] = 10.0
            loss = (per_token * mask).sum() / total
            if teacher:
                net, alpha, heat = teacher
                with torch.no_grad():
                    wanted = (net(ids[:, :-1]).logits[mask.bool()] / heat).softmax(-1)
                own = (logits[mask.bool()] / heat).log_softmax(-1)
                divergence = (wanted * (wanted.log() - own)).sum(-1).mean() * heat**2
                loss = alpha * loss + (1 - alpha) * divergence
            loss.backward()
            loss_sum += float(loss.detach())
        norm = float(torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0))
        for group in optimizer.param_groups:
            group["lr"] = lr
        optimizer.step()
        optimizer.zero_grad()
        yield loss_sum, lr, norm


def lines_of(folder, name):
    return [json.loads(line) for line in (folder / "dataset" / name).read_text().splitlines()]


def assert_same(ours, golden):
    golden = list(golden)
    assert len(ours) == len(golden)
    for line, (loss, lr, norm) in zip(ours, golden, strict=True):
        assert line["loss"] == pytest.approx(loss, abs=STEPS_TOLERANCE)
        assert line["lr"] == pytest.approx(lr, rel=1e-12)
        assert line["grad_norm"] == pytest.approx(norm, rel=1e-4)


PACKING = pytest.mark.parametrize("packing", ["--pack", "--no-pack"])


@PACKING
def test_pretrain_follows_the_plain_loop_step_by_step(folder, packing):
    flags = ("--from_weight", "base", "--batch_size", "5", "--accumulation_steps", "2", "--epochs", "2")
    ours = corpus.train_here(folder, "pretrain", *TINY, *flags, packing, "--max_seq_len", "48", run=f"pre{packing}")
    lines = lines_of(folder, "pretrain_hq.jsonl")
    sizes = {"batch": 5, "accumulation": 2, "epochs": 2, "peak": 5e-4, "length": 48}
    assert_same(ours, plain_sft(folder, llama(folder, "base_64.pth"), lines, key="text", **sizes))


@PACKING
def test_full_sft_follows_the_plain_loop_step_by_step(folder, packing):
    flags = ("--from_weight", "base", "--learning_rate", "1e-3", "--batch_size", "4", "--accumulation_steps", "3")
    ours = corpus.train_here(folder, "full_sft", *TINY, *flags, packing, "--max_seq_len", "96", run=f"sft{packing}")
    lines = lines_of(folder, "sft_mini_512.jsonl")
    sizes = {"batch": 4, "accumulation": 3, "epochs": 2, "peak": 1e-3, "length": 96}
    assert_same(ours, plain_sft(folder, llama(folder, "base_64.pth"), lines, key="conversations", **sizes))


def plain_dpo(folder, lines, *, batch, epochs, peak, length, normalised):
    words, model = Words(folder), llama(folder, "base_64.pth")
    reference = llama(folder, "base_64.pth").eval()
    rows = [
        [words.row(words.chat(line[side]), length, answers=True) for side in ("chosen", "rejected")] for line in lines
    ]
    optimizer = torch.optim.AdamW(model.parameters(), lr=peak)
    plan = order(len(rows), batch, 1, epochs)

    def log_probs(net, ids, mask):
        probs = net(ids[:, :-1]).logits.log_softmax(-1).gather(2, ids[:, 1:, None])[..., 0]
        summed = (probs * mask).sum(1)
        return summed / mask.sum(1) if normalised else summed

    for number in range(1, plan.total_steps + 1):
        step = plan.step(number)
        chosen_then_rejected = [rows[i][side] for side in (0, 1) for i in step.micro_batches[0]]
        ids = torch.tensor([row for row, _ in chosen_then_rejected])
        mask = torch.tensor([row for _, row in chosen_then_rejected])[:, 1:].float()
        with torch.no_grad():
            before = log_probs(reference, ids, mask)
        chosen, rejected = (log_probs(model, ids, mask) - before).chunk(2)
        loss = -F.logsigmoid(0.1 * (chosen - rejected)).mean()
        loss.backward()
        norm = float(torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0))
        lr = rate(peak, step.last_micro_batch, plan.total_micro_batches)
        for group in optimizer.param_groups:
            group["lr"] = lr
        optimizer.step()
        optimizer.zero_grad()
        yield float(loss.detach()), lr, norm


@PACKING
@pytest.mark.parametrize("normalised", [True, False])
def test_dpo_follows_the_plain_loop_step_by_step(folder, packing, normalised):
    flags = ("--from_weight", "base", "--learning_rate", "1e-4", "--batch_size", "5", "--max_seq_len", "96")
    ours = corpus.train_here(
        folder,
        "dpo",
        *TINY,
        *flags,
        packing,
        "--length_normalised",
        str(int(normalised)),
        run=f"dpo{packing}{normalised}",
    )
    lines = lines_of(folder, "dpo.jsonl")
    sizes = {"batch": 5, "epochs": 2, "peak": 1e-4, "length": 96}
    assert_same(ours, plain_dpo(folder, lines, normalised=normalised, **sizes))


class PlainLora(torch.nn.Module):
    def __init__(self, base, a, b):
        super().__init__()
        self.base, self.a, self.b = base, torch.nn.Parameter(a.clone()), torch.nn.Parameter(b.clone())

    def forward(self, x):
        return self.base(x) + x @ self.a.T @ self.b.T


def test_lora_follows_the_plain_loop_and_leaves_the_base_alone(folder):
    flags = ("--from_weight", "base", "--learning_rate", "1e-2", "--batch_size", "8", "--max_seq_len", "96")
    # one step at rate zero writes the adapters' first values, from which both go on
    corpus.train_here(folder, "lora", *TINY, *flags, "--learning_rate", "0", "--max_steps", "1", run="lora-start")
    (folder / "out" / "lora" / "lora_identity_64.pth").rename(folder / "start.pth")
    ours = corpus.train_here(folder, "lora", *TINY, *flags, "--epochs", "2", "--from_lora", "start.pth", run="lora")
    start = torch.load(folder / "start.pth", weights_only=True)
    model = llama(folder, "base_64.pth").requires_grad_(False)
    for index, layer in enumerate(model.model.layers):
        for name in ("q_proj", "o_proj"):
            key = f"model.layers.{index}.self_attn.{name}.lora"
            a, b = (start[f"{key}.{part}.weight"].float() for part in "AB")
            assert a.shape == (8, 64) and a.std() == pytest.approx(0.02, rel=0.2) and not b.any()
            setattr(layer.self_attn, name, PlainLora(getattr(layer.self_attn, name), a, b))
    lines = lines_of(folder, "lora_identity.jsonl")
    sizes = {"batch": 8, "accumulation": 1, "epochs": 2, "peak": 1e-2, "length": 96}
    assert_same(ours, plain_sft(folder, model, lines, key="conversations", **sizes))
    trained = torch.load(folder / "out" / "lora" / "lora_identity_64.pth", weights_only=True)
    assert set(trained) == set(start) and all(v.dtype == torch.float16 for v in trained.values())
    last = model.model.layers[1].self_attn.o_proj
    assert np.allclose(trained["model.layers.1.self_attn.o_proj.lora.B.weight"].float(), last.b.detach(), atol=1e-4)


REASONED = "<think>{}</think><answer>{}</answer>"


def reason_lines(folder):
    lines = lines_of(folder, "sft_mini_512.jsonl")
    for line in lines:
        for index, message in enumerate(line["conversations"]):
            if message["role"] == "assistant":
                message["content"] = REASONED.format(message["content"], f"so {index}")
    line["conversations"][-2]["content"] += " <think> about it"
    return lines


@PACKING
def test_reason_with_pieces_follows_the_originals_weights_step_by_step(folder, packing):
    lines = reason_lines(folder)
    corpus.write_jsonl(folder / "dataset" / "r1_mix_1024.jsonl", lines)
    flags = ("--from_weight", "base", "--learning_rate", "1e-3", "--batch_size", "5", "--max_seq_len", "128")
    ours = corpus.train_here(folder, "reason", *TINY, *flags, "--tag_match", "pieces", packing, run=f"reason{packing}")
    words = Words(folder)
    heavy = {token for tag in ("<think>", "</think>", "<answer>", "</answer>") for token in words.ids(tag)}
    sizes = {"batch": 5, "accumulation": 1, "epochs": 1, "peak": 1e-3, "length": 128}
    golden = plain_sft(folder, llama(folder, "base_64.pth"), lines, key="conversations", heavy=heavy, **sizes)
    assert_same(ours, golden)


def test_reason_weighs_whole_tags_in_answers_and_nothing_in_prompts(folder):
    words = tokenizer.load(folder / "out" / "tokenizer")
    path = corpus.write_jsonl(
        folder / "tags.jsonl",
        [
            {
                "conversations": [
                    corpus.turn("user", "say <think> or < or think"),
                    corpus.turn("assistant", REASONED.format("think", "<b>")),
                ]
            }
        ],
    )
    data = shards.load(path, "chat", words, fallback=folder, say=lambda text: None)
    tagged = words.decode(data.ids[np.flatnonzero(data.targets & shards.IN_TAG)].tolist())
    counted = words.decode(data.ids[np.flatnonzero(data.targets & shards.TARGET)].tolist(), skip_special=False)
    assert tagged.replace("think>think</", "think></") in (
        "<think></think><answer></answer>",
        "<think></think><answer><</answer>",
    )
    assert counted == REASONED.format("think", "<b>") + "<|im_end|>\n"


@pytest.mark.parametrize(("alpha", "heat"), [(0.0, 1.0), (0.5, 1.5)])
def test_distillation_follows_the_plain_loop_step_by_step(folder, alpha, heat):
    teacher = ("--teacher_weight", "teacher", "--teacher_hidden_size", "64")
    if not (folder / "out" / "teacher_64.pth").exists():
        corpus.train_here(folder, "pretrain", *TINY, "--seed", "9", "--epochs", "1", run="teacher")
        (folder / "out" / "pretrain_64.pth").rename(folder / "out" / "teacher_64.pth")
    flags = (
        "--from_weight",
        "base",
        "--learning_rate",
        "1e-3",
        "--batch_size",
        "8",
        "--epochs",
        "2",
        "--max_seq_len",
        "96",
    )
    mix = ("--alpha", str(alpha), "--temperature", str(heat))
    data = ("--data_path", "dataset/sft_mini_512.jsonl")
    ours = corpus.train_here(folder, "distillation", *TINY, *flags, *mix, *teacher, *data, run=f"distil{alpha}")
    sizes = {"batch": 8, "accumulation": 1, "epochs": 2, "peak": 1e-3, "length": 96}
    net = llama(folder, "teacher_64.pth").eval()
    lines = lines_of(folder, "sft_mini_512.jsonl")
    golden = plain_sft(
        folder, llama(folder, "base_64.pth"), lines, key="conversations", teacher=(net, alpha, heat), **sizes
    )
    assert_same(ours, golden)


def qwen3(folder, name):
    state = torch.load(folder / "out" / name, weights_only=True)
    config = transformers.Qwen3Config(
        vocab_size=state["lm_head.weight"].shape[0],
        hidden_size=64,
        intermediate_size=state["model.layers.0.mlp.gate_proj.weight"].shape[0],
        num_hidden_layers=2,
        num_attention_heads=8,
        num_key_value_heads=4,
        head_dim=8,
        rms_norm_eps=1e-6,
        rope_parameters={"rope_type": "default", "rope_theta": 1e6},
        max_position_embeddings=32768,
        tie_word_embeddings=True,
    )
    model = transformers.Qwen3ForCausalLM(config).float()
    model.load_state_dict({k: v.float() for k, v in state.items()})
    return model.train()


@pytest.mark.parametrize("key", ["wrapped", "conversations"])
def test_minimind3_follows_the_plain_loop_step_by_step(folder, key):
    third = ("--arch", "minimind3", *TINY)
    if not (folder / "out" / "third_64.pth").exists():
        corpus.train_here(folder, "pretrain", *third, "--epochs", "1", run="third")
        (folder / "out" / "pretrain_64.pth").rename(folder / "out" / "third_64.pth")
    stage, name = ("pretrain", "pretrain_hq.jsonl") if key == "wrapped" else ("full_sft", "sft_mini_512.jsonl")
    length = 40 if key == "wrapped" else 96
    flags = ("--from_weight", "third", "--learning_rate", "1e-3", "--batch_size", "4", "--accumulation_steps", "2")
    ours = corpus.train_here(
        folder, stage, *third, *flags, "--epochs", "2", "--max_seq_len", str(length), run=f"third-{stage}"
    )
    sizes = {"batch": 4, "accumulation": 2, "epochs": 2, "peak": 1e-3, "length": length, "schedule": rate3}
    assert_same(ours, plain_sft(folder, qwen3(folder, "third_64.pth"), lines_of(folder, name), key=key, **sizes))
