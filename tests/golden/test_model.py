"""The decoder against transformers' Llama on the same weights, and its own paths against one another."""

import pytest
import torch
import transformers

from minimind.config import ModelConfig
from minimind.generate import generate
from minimind.model import Cache, MiniMind, attend, attend_padded

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
    got = list(generate(ours, prompt[0].tolist(), max_new_tokens=40, eos_id=2))
    assert got == expected[: len(got)] and len(got) == (expected.index(2) if 2 in expected else 40)


def test_packed_documents_give_the_logits_they_give_alone():
    ours, _ = pair(64, 2)
    documents = [torch.randint(0, VOCAB, (n,)) for n in (5, 1, 33, 12)]
    with torch.no_grad():
        packed = ours(torch.cat(documents)[None], lengths=[len(d) for d in documents])[0]
        alone = torch.cat([ours(d[None])[0] for d in documents])
    assert (packed - alone).abs().max() < 1e-5


def test_every_attention_path_gives_the_same_values_and_gradients():
    lengths = [3, 17, 1, 9]
    q, k, v = (torch.randn(1, 4, sum(lengths), 8, requires_grad=True) for _ in range(3))
    grads = []
    for path in (attend, attend_padded):
        out = path(q, k, v, lengths)
        grads.append((out, *torch.autograd.grad(out.square().sum(), (q, k, v))))
    for one, other in zip(*grads, strict=True):
        assert (one - other).abs().max() < 1e-5


def test_the_cache_gives_the_logits_of_the_whole_text_in_pieces_of_any_length():
    ours, _ = pair(64, 2)
    ids = torch.randint(0, VOCAB, (1, 20))
    with torch.no_grad():
        whole = ours(ids)[0]
        cache = Cache(limit=20)
        pieces = torch.cat([ours(part, cache=cache)[0] for part in ids.split([7, 1, 5, 1, 6], dim=1)])
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
