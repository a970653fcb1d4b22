"""The decoder: Llama's block with MiniMind's sizes, state-dict keys as in Hugging Face.

Shapes: B rows, T tokens, C hidden, H heads, K key/value heads, D head width, V vocabulary, N selected positions.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from minimind.attention import Row, repeated, usual
from minimind.config import ModelConfig, Yarn
from minimind.dropout import Dropout, Place
from minimind.rundir import Reason, RunError


class RMSNorm(nn.Module):
    """Root-mean-square norm in fp32; minimind2 casts back before multiplying with the weight, minimind3 after."""

    def __init__(self, width: int, eps: float, *, cast_last: bool) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.eps, self.cast_last = eps, cast_last

    def forward(self, x: Tensor) -> Tensor:
        """(..., width) -> the same shape and dtype."""
        wide = x.float()
        normed = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + self.eps)
        return (self.weight * normed).to(x.dtype) if self.cast_last else self.weight * normed.to(x.dtype)


def rotary_tables(config: ModelConfig, positions: Tensor) -> tuple[Tensor, Tensor]:
    """Cosines and sines for positions (T,): two (T, D) tables in fp32, the frequencies repeated for the two halves.

    RoFormer (Su et al. 2021) in the half-split layout of Llama.
    """
    exponents = torch.arange(0, config.head_dim, 2, device=positions.device, dtype=torch.float32) / config.head_dim
    frequencies = 1.0 / config.rope_theta**exponents  # (D/2,)
    if config.yarn is not None:
        frequencies = stretch(frequencies, config.yarn, theta=config.rope_theta)
    angles = torch.outer(positions.float(), frequencies)
    angles = torch.cat((angles, angles), -1)  # (T, D)
    scale = config.yarn.attention_factor if config.yarn is not None else 1.0
    return angles.cos() * scale, angles.sin() * scale


def stretch(frequencies: Tensor, yarn: Yarn, *, theta: float) -> Tensor:
    """Rotary frequencies (D/2,) for longer texts: YaRN (Peng et al. 2023, section 3.2).

    A frequency that turns more than ``beta_fast`` times within the original length stays, one that turns less than
    ``beta_slow`` times is divided by the factor, and a linear ramp over their indices lies between.
    """
    half = len(frequencies)

    def index(turns: float) -> float:  # of the frequency that turns so often within the original length
        return half * math.log(yarn.original_length / (turns * 2 * math.pi)) / math.log(theta)

    low, high = max(math.floor(index(yarn.beta_fast)), 0), min(math.ceil(index(yarn.beta_slow)), 2 * half - 1)
    steps = torch.arange(half, device=frequencies.device, dtype=torch.float32) - low
    ramp = (steps / max(high - low, 0.001)).clamp(0, 1)
    return frequencies * (1 - ramp) + frequencies / yarn.factor * ramp


def rotate(x: Tensor, tables: tuple[Tensor, Tensor]) -> Tensor:
    """Apply rotary positions to (B, H, T, D)."""
    cos, sin = (table.to(x.dtype) for table in tables)
    low, high = x.chunk(2, -1)
    return x * cos + torch.cat((-high, low), -1) * sin


class Memory(Protocol):
    """Earlier tokens' keys and values, as a pass over further tokens sees them (:mod:`minimind.sampling` has them)."""

    tables: tuple[Tensor, Tensor]
    """Cosines and sines of the further tokens' positions, broadcast against (B, H, T, D)."""

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Keep keys and values (B, K, T, D); what queries (B, H, T, D) find among all there are: (B, H, T, D)."""


class Attention(nn.Module):
    """Grouped-query attention with rotary positions, no biases."""

    def __init__(self, config: ModelConfig, layer: int) -> None:
        super().__init__()
        self.layer, self.head_dim = layer, config.head_dim
        self.q_norm, self.k_norm = (
            (rms_norm(config, config.head_dim) if config.qk_norm else nn.Identity()) for _ in range(2)
        )
        self.q_proj = nn.Linear(config.hidden_size, config.num_attention_heads * config.head_dim, bias=False)
        self.k_proj = nn.Linear(config.hidden_size, config.num_key_value_heads * config.head_dim, bias=False)
        self.v_proj = nn.Linear(config.hidden_size, config.num_key_value_heads * config.head_dim, bias=False)
        self.o_proj = nn.Linear(config.num_attention_heads * config.head_dim, config.hidden_size, bias=False)

    def forward(
        self,
        x: Tensor,
        tables: tuple[Tensor, Tensor],
        row: Row | None,
        cache: Memory | None,
        dropout: Dropout | None = None,
    ) -> Tensor:
        """(B, T, C) -> (B, T, C)."""
        b, t, _ = x.shape
        q, k, v = (
            projection(x).view(b, t, -1, self.head_dim).transpose(1, 2)  # (B, H or K, T, D)
            for projection in (self.q_proj, self.k_proj, self.v_proj)
        )
        q, k = rotate(self.q_norm(q), tables), rotate(self.k_norm(k), tables)
        if cache is not None:
            out = cache.attend(self.layer, q, k, v)
        elif dropout is not None:
            k, v = repeated(k, q.shape[1]), repeated(v, q.shape[1])
            out = dropout.attend(q, k, v, None if row is None else row.lengths)
        elif row is not None:
            out = row.attend(q, k, v)
        else:
            k, v = repeated(k, q.shape[1]), repeated(v, q.shape[1])
            out = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        projected: Tensor = self.o_proj(out.transpose(1, 2).reshape(b, t, -1))
        return dropout(projected, Place.RESIDUAL) if dropout is not None else projected


def rms_norm(config: ModelConfig, width: int) -> RMSNorm:
    """The generation's norm."""
    return RMSNorm(width, config.rms_norm_eps, cast_last=config.arch == "minimind3")


class MLP(nn.Module):
    """SwiGLU: down(silu(gate(x)) * up(x))."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.up_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.down_proj = nn.Linear(config.intermediate_size, config.hidden_size, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """(..., C) -> (..., C)."""
        out: Tensor = self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))
        return out


class MoE(nn.Module):
    """A mixture of experts: each token goes to its k likeliest of E, by their probabilities, and to the shared one.

    ``auxiliary`` holds the load-balancing loss of the last training pass (Fedus et al. 2021, eq. 4): minimind2 takes it
    per text and averages over texts, minimind3 over all tokens of the pass at once.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.k, self.experts_count = config.experts_per_token, config.num_experts
        self.per_text = config.arch == "minimind2"
        self.weight_of_auxiliary = 0.1 if self.per_text else 5e-4
        self.gate = nn.Linear(config.hidden_size, config.num_experts, bias=False)
        self.experts = nn.ModuleList(MLP(config) for _ in range(config.num_experts))
        self.shared_experts = nn.ModuleList(MLP(config) for _ in range(config.num_shared_experts))
        self.auxiliary: Tensor | None = None

    def forward(self, x: Tensor, lengths: Sequence[int] | None, dropout: Dropout | None = None) -> Tensor:
        """(B, T, C) -> (B, T, C)."""
        flat = x.reshape(-1, x.shape[-1])  # (B*T, C)
        scores = self.gate(flat).float().softmax(-1)  # (B*T, E)
        weight, chosen = scores.topk(self.k)  # each (B*T, k)
        weight = weight / (weight.sum(-1, keepdim=True) + 1e-20)
        slots = chosen.flatten().argsort(stable=True)  # tokens' choices, grouped by expert
        counts = chosen.flatten().bincount(minlength=self.experts_count)
        rows = slots // self.k
        groups = torch.split(flat[rows], counts.tolist())  # without tokens an expert runs on none: gradient 0
        outs = torch.cat([expert(group) for expert, group in zip(self.experts, groups, strict=True)])
        if dropout is not None:
            outs = dropout.experts(outs, token=rows, expert=chosen.flatten()[slots])
        outs = outs * weight.flatten()[slots, None].to(outs.dtype)
        out = torch.zeros_like(outs[: len(flat)]).index_add(0, rows, outs)
        for number, expert in enumerate(self.shared_experts):
            shared = expert(flat)
            if dropout is not None:
                everyone = torch.arange(len(flat), device=flat.device)
                which = torch.full_like(everyone, self.experts_count + number)
                shared = dropout.experts(shared, token=everyone, expert=which)
            out = out + shared
        if self.training:
            self.auxiliary = self._balance(scores, chosen, lengths or [x.shape[1]] * x.shape[0])
        return out.view_as(x)

    def _balance(self, scores: Tensor, chosen: Tensor, lengths: Sequence[int]) -> Tensor:
        picked = F.one_hot(chosen, self.experts_count).sum(1).to(scores.dtype)  # (B*T, E)
        if not self.per_text:
            return (picked.mean(0) * scores.mean(0)).sum() * self.experts_count * self.weight_of_auxiliary
        length = torch.tensor(lengths, device=scores.device)
        text = torch.arange(len(lengths), device=scores.device).repeat_interleave(length)
        zeros = scores.new_zeros(len(lengths), self.experts_count)
        load, mean = (zeros.index_add(0, text, value) / length[:, None] for value in (picked, scores))  # (texts, E)
        return (load * self.experts_count / self.k * mean).sum(1).mean() * self.weight_of_auxiliary


class Block(nn.Module):
    """Pre-norm attention and feed-forward, each added to the stream."""

    def __init__(self, config: ModelConfig, layer: int) -> None:
        super().__init__()
        self.self_attn = Attention(config, layer)
        self.mlp = MoE(config) if config.num_experts else MLP(config)
        self.input_layernorm = rms_norm(config, config.hidden_size)
        self.post_attention_layernorm = rms_norm(config, config.hidden_size)

    def forward(
        self,
        x: Tensor,
        tables: tuple[Tensor, Tensor],
        row: Row | None,
        cache: Memory | None,
        dropout: Dropout | None = None,
    ) -> Tensor:
        """(B, T, C) -> (B, T, C)."""
        x = x + self.self_attn(self.input_layernorm(x), tables, row, cache, dropout)
        normed = self.post_attention_layernorm(x)
        if isinstance(self.mlp, MoE):
            return x + self.mlp(normed, None if row is None else row.lengths, dropout)
        out: Tensor = self.mlp(normed)
        return x + (out if dropout is None else dropout(out, Place.FEED_FORWARD))


class Decoder(nn.Module):
    """Embedding, blocks, last norm."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(Block(config, layer) for layer in range(config.num_hidden_layers))
        self.norm = rms_norm(config, config.hidden_size)


class MiniMind(nn.Module):
    """The language model; ``lm_head`` is tied to the embedding."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.model = Decoder(config)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.model.embed_tokens.weight = self.lm_head.weight
        self.dropout: Dropout | None = None
        """What the next pass drops; whoever trains sets it for each pass, since only it knows the samples."""
        self.way: type[Row] | None = None
        """How packed documents attend; None is :func:`minimind.attention.usual`. Whoever trains may set another."""

    def auxiliary(self) -> Tensor | None:
        """The load-balancing loss of the last training pass over all layers; None for a dense model."""
        parts = [block.mlp.auxiliary for block in self.model.layers if isinstance(block.mlp, MoE)]
        return torch.stack([part for part in parts if part is not None]).sum() if parts else None

    def forward(
        self,
        input_ids: Tensor,
        *,
        lengths: Sequence[int] | None = None,
        cache: Memory | None = None,
        select: Tensor | None = None,
        head: Callable[[Tensor, Tensor], Tensor] | None = None,
    ) -> Tensor:
        """Logits, or what ``head`` makes in their place.

        Args:
            input_ids: (B, T) token ids.
            lengths: with B = 1, the lengths of the documents that make up the row; positions restart at each.
            cache: earlier tokens' keys and values; these T tokens are added to them.
            select: (N,) indices into the B*T positions; only their logits are computed.
            head: called with the last hidden states and the output matrix (V, C); a loss that never makes all logits.

        Returns:
            (B, T, V), or (N, V) with ``select``; with ``head``, its result.

        Raises:
            RunError: when a text is longer than the model's positions.
        """
        longest = max(lengths) if lengths is not None else input_ids.shape[1]
        if longest > self.config.max_position_embeddings:
            raise RunError(
                f"a text of {longest} tokens is too long for this model",
                why=f"it has {self.config.max_position_embeddings} positions",
                remedy="shorten the text, or lower --max_seq_len",
                reason=Reason.DATA_INVALID,
            )
        row = None
        if lengths is not None and len(lengths) > 1:
            row = (self.way or usual(input_ids.device))(lengths, input_ids.device)
        if cache is not None:
            tables = cache.tables
        else:
            positions = torch.arange(longest, device=input_ids.device) if row is None else row.position
            tables = rotary_tables(self.config, positions)
        x = self.model.embed_tokens(input_ids)
        dropout = self.dropout if self.training else None
        if dropout is not None:
            x = dropout(x, Place.EMBEDDING)
        blocks = self.model.layers
        drops = [None] * len(blocks) if dropout is None else dropout.by_layer(len(blocks))
        for block, drop in zip(blocks, drops, strict=True):
            x = block(x, tables, row, cache, drop)
        x = self.model.norm(x)  # (B, T, C)
        if select is not None:
            x = x.reshape(-1, x.shape[-1]).index_select(0, select)  # (N, C)
        made: Tensor = self.lm_head(x) if head is None else head(x, self.lm_head.weight)
        return made
