"""Kernels that only a GPU has, as plain sums with the same contract: what is around them can then be tested here."""

import itertools

import pytest
import torch
import torch.nn.attention.flex_attention
import torch.nn.attention.varlen


def varlen_attn(query, key, value, cu_seq_q, cu_seq_k, max_q, max_k, *, window_size=(-1, -1), enable_gqa=False):
    """`torch.nn.attention.varlen.varlen_attn`: queries (T, H, D), keys and values (T, K, D) -> (T, H, D)."""
    tokens, heads, _ = query.shape
    assert all(x.is_contiguous() and len(x) == tokens for x in (query, key, value))
    assert enable_gqa == (heads != key.shape[1]) and window_size == (-1, 0)
    assert cu_seq_q is cu_seq_k and cu_seq_q.dtype == torch.int32
    bounds = cu_seq_q.tolist()
    assert bounds[0] == 0 and bounds[-1] == tokens and bounds == sorted(bounds)
    key, value = (x.repeat_interleave(heads // x.shape[1], dim=1) for x in (key, value))
    made = []
    for begin, end in itertools.pairwise(bounds):
        assert end - begin <= max_q == max_k
        q, k, v = (x[begin:end].transpose(0, 1) for x in (query, key, value))  # (H, L, D)
        scores = q @ k.transpose(1, 2) / q.shape[-1] ** 0.5
        future = torch.ones(scores.shape[1:], dtype=torch.bool, device=q.device).triu(1)
        made.append((scores.masked_fill(future, -torch.inf).softmax(-1) @ v).transpose(0, 1))
    return torch.cat(made)


@pytest.fixture
def gpu_kernels(monkeypatch):
    """Varlen by plain sums, and flex as torch spells it out: on a CPU it refuses to go back only by a check."""
    monkeypatch.setattr(torch.nn.attention.varlen, "varlen_attn", varlen_attn)
    monkeypatch.setattr(torch.nn.attention.flex_attention, "_validate_device", lambda *tensors: None)
