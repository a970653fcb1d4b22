"""The decoder against transformers' Llama on the same weights, and its own paths against one another."""

import pytest
import safetensors.torch
import torch
import transformers

from minimind.cache import Cache, Piece
from minimind.checkpoint import load_model
from minimind.config import ModelConfig
from minimind.model import MiniMind, MoE
from minimind.sampling import Sampling, generate

VOCAB = 300


def pair(hidden_size: int, layers: int) -> tuple[MiniMind, transformers.LlamaForCausalLM]:
    torch.manual_seed(7)
    config = ModelConfig.for_arch("minimind2", hidden_size=hidden_size, num_hidden_layers=layers, vocab_size=VOCAB)
    ours = MiniMind(config).eval()
    theirs = transformers.LlamaForCausalLM(
        transformers.LlamaConfig(
            vocab_size=VOCAB,
            hidden_size=hidden_size,
            intermediate_size=config.intermediate_size,
            num_hidden_layers=layers,
            num_attention_heads=8,
            num_key_value_heads=2,
            rms_norm_eps=1e-5,
            rope_parameters={"rope_type": "default", "rope_theta": 1e6},
            max_position_embeddings=32768,
            tie_word_embeddings=True,
            attention_bias=False,
            mlp_bias=False,
            bos_token_id=1,
            eos_token_id=2,
            pad_token_id=0,
        )
    ).eval()
    missing, unexpected = theirs.load_state_dict(ours.state_dict(), strict=False)
    assert not missing and not unexpected
    return ours, theirs


@pytest.mark.parametrize(("hidden_size", "layers"), [(64, 2), (512, 3)])
def test_logits_equal_those_of_transformers_llama_on_the_same_weights(hidden_size, layers):
    ours, theirs = pair(hidden_size, layers)
    ids = torch.randint(0, VOCAB, (3, 70))
    with torch.no_grad():
        assert (ours(ids) - theirs(ids).logits).abs().max() < 1e-5


def test_greedy_text_equals_that_of_transformers():
    ours, theirs = pair(64, 2)
    prompt = torch.randint(3, VOCAB, (1, 9))
    expected = theirs.generate(prompt, max_new_tokens=40, do_sample=False)[0, 9:].tolist()
    got = list(generate(ours, prompt[0].tolist(), Sampling(max_new_tokens=40, stop_ids=frozenset({2}))))
    assert got == expected[: len(got)] and len(got) == (expected.index(2) if 2 in expected else 40)


def test_packed_documents_give_the_logits_they_give_alone():
    ours, _ = pair(64, 2)
    documents = [torch.randint(0, VOCAB, (n,)) for n in (5, 1, 33, 12)]
    with torch.no_grad():
        packed = ours(torch.cat(documents)[None], lengths=[len(d) for d in documents])[0]
        alone = torch.cat([ours(d[None])[0] for d in documents])
    assert (packed - alone).abs().max() < 1e-5


def test_the_cache_gives_the_logits_of_the_whole_text_in_pieces_of_any_length():
    ours, _ = pair(64, 2)
    ids = torch.randint(0, VOCAB, (1, 20))
    with torch.no_grad():
        whole = ours(ids)[0]
        cache, at, pieces = Cache(ours), 0, []
        cache.reserve(1, 20)
        for part in ids.split([7, 1, 5, 1, 6], dim=1):
            pieces.append(ours(part, cache=Piece(cache, 0, at, part.shape[1]))[0])
            at += part.shape[1]
        pieces = torch.cat(pieces)
    assert (whole - pieces).abs().max() < 1e-5


def test_selected_positions_have_the_logits_of_the_full_pass():
    ours, _ = pair(64, 2)
    ids, select = torch.randint(0, VOCAB, (2, 11)), torch.tensor([0, 5, 10, 11, 21])
    with torch.no_grad():
        assert (ours(ids, select=select) - ours(ids).reshape(22, VOCAB)[select]).abs().max() < 1e-5


def test_the_presets_have_the_published_number_of_parameters():
    with torch.device("meta"):
        small, base = (
            MiniMind(ModelConfig.for_arch("minimind2", hidden_size=h, num_hidden_layers=n, vocab_size=6400))
            for h, n in ((512, 8), (768, 16))
        )
    assert round(sum(p.numel() for p in small.parameters()) / 1e6) == 26
    assert round(sum(p.numel() for p in base.parameters()) / 1e6) == 104


def qwen(config: ModelConfig) -> transformers.PreTrainedModel:
    common = {
        "vocab_size": VOCAB,
        "hidden_size": config.hidden_size,
        "num_hidden_layers": config.num_hidden_layers,
        "num_attention_heads": 8,
        "num_key_value_heads": 4,
        "head_dim": config.head_dim,
        "rms_norm_eps": 1e-6,
        "rope_parameters": {"rope_type": "default", "rope_theta": 1e6},
        "max_position_embeddings": 32768,
        "tie_word_embeddings": True,
        "attention_bias": False,
    }
    if not config.num_experts:
        return transformers.Qwen3ForCausalLM(
            transformers.Qwen3Config(intermediate_size=config.intermediate_size, **common)
        ).eval()
    return transformers.Qwen3MoeForCausalLM(
        transformers.Qwen3MoeConfig(
            moe_intermediate_size=config.intermediate_size,
            num_experts=4,
            num_experts_per_tok=1,
            norm_topk_prob=True,
            decoder_sparse_step=1,
            mlp_only_layers=[],
            **common,
        )
    ).eval()


@pytest.mark.parametrize("use_moe", [False, True])
def test_minimind3_logits_equal_those_of_transformers_qwen3(use_moe, tmp_path):
    torch.manual_seed(3)
    config = ModelConfig.for_arch("minimind3", hidden_size=64, num_hidden_layers=2, vocab_size=VOCAB, use_moe=use_moe)
    ours = MiniMind(config).eval()
    with torch.no_grad():
        for name, parameter in ours.named_parameters():
            if "norm" in name:
                parameter.uniform_(0.5, 1.5)
    theirs = qwen(config)
    # through a file in Hugging Face's format, so that transformers' own conversion of expert weights is what reads it
    theirs.save_pretrained(tmp_path)
    safetensors.torch.save_file(
        {name: value.clone() for name, value in ours.state_dict().items()},
        tmp_path / "model.safetensors",
        {"format": "pt"},
    )
    theirs = type(theirs).from_pretrained(tmp_path, dtype=torch.float32).eval()
    ids = torch.randint(0, VOCAB, (3, 70))
    with torch.no_grad():
        assert (ours(ids) - theirs(ids).logits).abs().max() < 1e-5


def dense_mixture(layer, x: torch.Tensor, lengths) -> tuple[torch.Tensor, torch.Tensor]:
    """Every expert on every token, chosen by a mask; the auxiliary loss text by text in plain sums."""
    scores = (x @ layer.gate.weight.T).softmax(-1)  # (T, E)
    picked = torch.zeros_like(scores).scatter(1, scores.topk(layer.k).indices, 1.0)
    weight = scores * picked / (scores * picked).sum(-1, keepdim=True)
    out = sum(weight[:, e, None] * layer.experts[e](x) for e in range(4)) + sum(s(x) for s in layer.shared_experts)
    losses = []
    for part, chosen in zip(scores.split(lengths), picked.split(lengths), strict=True):
        fraction = chosen.sum(0) / (len(part) * layer.k / 4)
        losses.append((fraction * part.mean(0)).sum() * 0.1)
    whole = ((picked.mean(0) * scores.mean(0)).sum()) * 4 * 5e-4
    return out, torch.stack(losses).mean() if layer.per_text else whole


@pytest.mark.parametrize("arch", ["minimind2", "minimind3"])
def test_a_mixture_equals_every_expert_evaluated_densely_gradients_included(arch):
    torch.manual_seed(5)
    config = ModelConfig.for_arch(arch, hidden_size=64, num_hidden_layers=1, vocab_size=VOCAB, use_moe=True)
    layer, lengths = MoE(config).train(), [7, 1, 25, 4]
    x = torch.randn(1, sum(lengths), 64, requires_grad=True)
    found = []
    for out, auxiliary in ((layer(x, lengths), layer.auxiliary), dense_mixture(layer, x[0], lengths)):
        total = out.square().sum() + 100 * auxiliary
        wanted = (x, *layer.parameters())
        found.append((out.flatten(), auxiliary, *torch.autograd.grad(total, wanted)))
    for one, other in zip(*found, strict=True):
        assert torch.allclose(one, other, atol=1e-5, rtol=1e-5)


def test_an_expert_that_no_token_chose_has_a_gradient_of_zero():
    config = ModelConfig.for_arch("minimind3", hidden_size=64, num_hidden_layers=1, vocab_size=VOCAB, use_moe=True)
    layer = MoE(config).train()
    layer(torch.randn(1, 1, 64), None).sum().backward()
    assert all(p.grad is not None for p in layer.experts.parameters())


@pytest.mark.parametrize("arch", ["minimind2", "minimind3"])
@pytest.mark.parametrize("use_moe", [False, True])
def test_a_weights_file_says_itself_what_model_it_is(arch, use_moe, tmp_path):
    config = ModelConfig.for_arch(arch, hidden_size=64, num_hidden_layers=2, vocab_size=VOCAB, use_moe=use_moe)
    model = MiniMind(config).eval()
    torch.save({k: v.half() for k, v in model.state_dict().items()}, tmp_path / "any.pth")
    read = load_model(tmp_path / "any.pth")
    assert read.config == config
    ids = torch.randint(0, VOCAB, (1, 12))
    with torch.no_grad():
        assert (read(ids) - model(ids)).abs().max() < 1e-2
