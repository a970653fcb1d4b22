"""Training as the original does it, on transformers.

Rows are padded to max_seq_len, every position has a label, the optimiser is torch's AdamW. It is the reference of
`bench/train.py` and shares with ours the order of samples and the starting weights, no code beyond that. Data is
tokenised before the clock starts. A process of its own: a JSON specification in, a JSON result out.
"""

import copy
import json
import math
import pathlib
import resource
import sys
import time

import tokenizers
import torch
import torch.nn.functional as F
import transformers

from minimind.batches import Order


def model_of(weights: str, arch: str) -> torch.nn.Module:
    state = torch.load(weights, weights_only=True)
    hidden = state["model.embed_tokens.weight"].shape[1]
    heads = 8
    shape = {
        "vocab_size": state["model.embed_tokens.weight"].shape[0],
        "hidden_size": hidden,
        "intermediate_size": state["model.layers.0.mlp.gate_proj.weight"].shape[0],
        "num_hidden_layers": 1 + max(int(k.split(".")[2]) for k in state if k.startswith("model.layers.")),
        "num_attention_heads": heads,
        "num_key_value_heads": state["model.layers.0.self_attn.k_proj.weight"].shape[0] // (hidden // heads),
        "max_position_embeddings": 32768,
        "tie_word_embeddings": True,
        "rope_parameters": {"rope_type": "default", "rope_theta": 1e6},
    }
    if arch == "minimind3":
        config = transformers.Qwen3Config(**shape, head_dim=hidden // heads, rms_norm_eps=1e-6)
        net = transformers.Qwen3ForCausalLM(config)
    else:
        net = transformers.LlamaForCausalLM(transformers.LlamaConfig(**shape, rms_norm_eps=1e-5))
    net.float().load_state_dict({k: v.float() for k, v in state.items()})
    return net.train()


class LowRank(torch.nn.Module):
    """W x + B A x on a frozen W."""

    def __init__(self, base: torch.nn.Linear, rank: int) -> None:
        super().__init__()
        self.base = base
        self.A = torch.nn.Linear(base.in_features, rank, bias=False)
        self.B = torch.nn.Linear(rank, base.out_features, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.base(x) + self.B(self.A(x))


def adapters(net: torch.nn.Module, state: dict[str, torch.Tensor]) -> None:
    """The adapters of a file on a frozen model."""
    net.requires_grad_(False)
    for name in {key.partition(".lora.")[0] for key in state}:
        parent, _, child = name.rpartition(".")
        module = net.get_submodule(parent)
        low = LowRank(getattr(module, child), state[f"{name}.lora.A.weight"].shape[0])
        low.A.weight.data = state[f"{name}.lora.A.weight"].float()
        low.B.weight.data = state[f"{name}.lora.B.weight"].float()
        setattr(module, child, low)


def padded(backend: tokenizers.Tokenizer, text: str, length: int, *, answers: bool) -> tuple[list[int], list[int]]:
    """(length,) ids and 0/1 for what counts."""
    ids = backend.encode(text).ids[:length]
    mask = [0 if answers else 1] * len(ids)
    header = backend.encode("<|im_start|>assistant\n").ids
    end = backend.token_to_id("<|im_end|>")
    at = 0
    while answers and at < len(ids):
        if ids[at : at + len(header)] == header:
            stop = next((i for i in range(at, len(ids)) if ids[i] == end), len(ids))
            for i in range(at + len(header), min(stop + 2, len(ids))):
                mask[i] = 1
            at = stop
        at += 1
    return ids + [0] * (length - len(ids)), mask + [0] * (length - len(ids))


def conversation(turns: list[dict[str, str]]) -> str:
    text = "<|im_start|>system\nYou are a helpful assistant<|im_end|>\n"
    return text + "".join(f"<|im_start|>{turn['role']}\n{turn['content']}<|im_end|>\n" for turn in turns)


def log_probs(net: torch.nn.Module, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Mean log-probability of each row's answer, (B,)."""
    every = net(ids[:, :-1]).logits.log_softmax(-1)
    picked = every.gather(-1, ids[:, 1:, None])[..., 0]
    return (picked * mask).sum(1) / mask.sum(1)


def main() -> int:
    spec = json.loads(sys.argv[1])
    torch.set_num_threads(spec["threads"])
    stage, length, batch = spec["stage"], spec["max_seq_len"], spec["batch_size"]
    backend = tokenizers.Tokenizer.from_file(str(pathlib.Path(spec["tokenizer"]) / "tokenizer.json"))
    lines = [json.loads(line) for line in pathlib.Path(spec["data"]).read_text().splitlines()]
    if stage == "pretrain":
        sides = [[padded(backend, line["text"], length, answers=False) for line in lines]]
    elif stage == "dpo":
        sides = [
            [padded(backend, conversation(line[side]), length, answers=True) for line in lines]
            for side in ("chosen", "rejected")
        ]
    else:
        sides = [[padded(backend, conversation(line["conversations"]), length, answers=True) for line in lines]]
    net = model_of(spec["weights"], spec["arch"])
    reference = copy.deepcopy(net).eval().requires_grad_(False) if stage == "dpo" else None
    if stage == "lora":
        adapters(net, torch.load(spec["adapter"], weights_only=True))
    parameters = [p for p in net.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=spec["learning_rate"])
    plan = Order(
        samples=len(lines), batch_size=batch, micro_batches_per_step=1, epochs=spec["epochs"], seed=spec["seed"]
    )
    marks, losses = [], []
    start = time.perf_counter()
    for number in range(1, spec["steps"] + 1):
        step = plan.step(number)
        (micro,) = step.micro_batches
        part = step.last_micro_batch / plan.total_micro_batches
        rate = spec["learning_rate"] / 10 + spec["learning_rate"] / 2 * (1 + math.cos(math.pi * part))
        for group in optimizer.param_groups:
            group["lr"] = rate
        rows = [side[i] for side in sides for i in micro]
        ids = torch.tensor([row[0] for row in rows])  # (B, length)
        mask = torch.tensor([row[1] for row in rows])[:, 1:].float()
        if reference is None:
            logits = net(ids[:, :-1]).logits
            each = F.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten(), reduction="none").view_as(mask)
            loss = (each * mask).sum() / mask.sum()
        else:
            with torch.no_grad():
                before = log_probs(reference, ids, mask)
            chosen, rejected = (log_probs(net, ids, mask) - before).chunk(2)
            loss = -F.logsigmoid(spec["beta"] * (chosen - rejected)).mean()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(float(loss.detach()))
        marks.append(time.perf_counter())
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    print(json.dumps({"start": start, "marks": marks, "losses": losses, "peak_bytes": peak}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
