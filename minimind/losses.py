"""Losses as pure functions of tensors. Each returns sums; the loop divides once."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

ROWS = 256
"""Targets whose logits exist at one time: 256 rows of 6400 entries stay near a CPU's cache."""


def _exponentials(logits: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """(rows, V) becomes, in place, exp(logits - max): log of the sum of exp (rows, 1), the exponentials, their sum."""
    top = logits.amax(-1, keepdim=True)
    exponentials = logits.sub_(top).exp_()
    norm = exponentials.sum(-1, keepdim=True)
    return norm.log() + top, exponentials, norm


class LinearCrossEntropy(torch.autograd.Function):
    """:func:`linear_cross_entropy_sum`. Its gradients are linear in what comes from above, so the forward makes them.

    No (N, V) tensor is kept or made: logits of some rows at a time become the loss and, in place, its gradient.
    """

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, targets: Tensor, weights: Tensor | None) -> Tensor:
        """See :func:`linear_cross_entropy_sum`."""
        dtype = torch.get_autocast_dtype(hidden.device.type) if torch.is_autocast_enabled() else hidden.dtype
        low, matrix = hidden.to(dtype), weight.to(dtype)
        wants_hidden, wants_weight = ctx.needs_input_grad[:2]
        of_hidden = torch.empty_like(low) if wants_hidden else None
        of_weight = torch.zeros_like(weight) if wants_weight else None  # summed in the weight's own precision
        total = torch.zeros((), dtype=torch.float32, device=hidden.device)
        for first in range(0, len(low), ROWS):
            rows = slice(first, first + ROWS)
            part, wanted = low[rows], targets[rows, None]
            logits = (part @ matrix.T).float()  # (rows, V)
            of_target = logits.gather(1, wanted)  # (rows, 1)
            log_sum, exponentials, norm = _exponentials(logits)
            losses = (log_sum - of_target)[:, 0]
            total += losses.sum() if weights is None else (losses * weights[rows]).sum()
            if of_hidden is None and of_weight is None:
                continue
            gradient = exponentials.div_(norm)
            gradient.scatter_add_(1, wanted, gradient.new_full((), -1.0).expand_as(wanted))
            if weights is not None:
                gradient.mul_(weights[rows, None])
            gradient = gradient.to(dtype)
            if of_hidden is not None:
                torch.mm(gradient, matrix, out=of_hidden[rows])
            if of_weight is not None and dtype == weight.dtype:
                of_weight.addmm_(gradient.T, part)
            elif of_weight is not None:
                of_weight += gradient.T @ part
        ctx.save_for_backward(of_hidden, of_weight)
        ctx.dtype = hidden.dtype
        return total

    @staticmethod
    def backward(ctx: Any, *above: Any) -> tuple[Tensor | None, ...]:
        """Scale what the forward made."""
        of_hidden, of_weight = ctx.saved_tensors
        (scale,) = above
        return (
            None if of_hidden is None else (of_hidden * scale).to(ctx.dtype),
            None if of_weight is None else of_weight * scale,
            None,
            None,
        )


def linear_cross_entropy_sum(hidden: Tensor, weight: Tensor, targets: Tensor, weights: Tensor | None = None) -> Tensor:
    """Sum over N targets of w_n * -log softmax(weight @ hidden_n)[target_n], in fp32, without an (N, V) tensor.

    Args:
        hidden: (N, C) last hidden states.
        weight: (V, C) the output matrix.
        targets: (N,) token ids.
        weights: (N,) what each target weighs; one each where absent.
    """
    total: Tensor = LinearCrossEntropy.apply(hidden, weight, targets, weights)
    return total


def cross_entropy_sum(logits: Tensor, targets: Tensor) -> Tensor:
    """Sum over N targets of -log softmax(logits)[target], in fp32.

    Args:
        logits: (N, V).
        targets: (N,) token ids.
    """
    return F.cross_entropy(logits.float(), targets, reduction="sum")


def distillation_sum(student: Tensor, teacher: Tensor, *, temperature: float) -> Tensor:
    """Sum over N positions of T^2 * KL(teacher || student) at temperature T (Hinton et al. 2015).

    Args:
        student: (N, V) logits.
        teacher: (N, V) logits, or more columns, of which the first V count.
        temperature: T.
    """
    own = F.log_softmax(student.float() / temperature, -1)
    wanted = F.log_softmax(teacher[:, : student.shape[1]].float() / temperature, -1)
    return F.kl_div(own, wanted, reduction="sum", log_target=True) * temperature**2


class LinearLogProbs(torch.autograd.Function):
    """:func:`linear_log_probs`. What each target is worth comes from above, so the backward makes the logits again."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
        """See :func:`linear_log_probs`."""
        ctx.dtype = torch.get_autocast_dtype(hidden.device.type) if torch.is_autocast_enabled() else hidden.dtype
        low, matrix = hidden.to(ctx.dtype), weight.to(ctx.dtype)
        found = torch.empty(len(low), dtype=torch.float32, device=low.device)
        log_sum = torch.empty_like(found)
        for first in range(0, len(low), ROWS):
            rows = slice(first, first + ROWS)
            logits = (low[rows] @ matrix.T).float()  # (rows, V)
            of_target = logits.gather(1, targets[rows, None])[:, 0]
            log_sum[rows] = _exponentials(logits)[0][:, 0]
            found[rows] = of_target - log_sum[rows]
        ctx.save_for_backward(hidden, weight, targets, log_sum)
        return found

    @staticmethod
    def backward(ctx: Any, *above: Any) -> tuple[Tensor | None, ...]:
        """Of each row: (onehot - softmax) times what came from above."""
        hidden, weight, targets, log_sum = ctx.saved_tensors
        low, matrix = hidden.to(ctx.dtype), weight.to(ctx.dtype)
        of_hidden = torch.empty_like(low) if ctx.needs_input_grad[0] else None
        of_weight = torch.zeros_like(weight) if ctx.needs_input_grad[1] else None
        for first in range(0, len(low), ROWS):
            rows = slice(first, first + ROWS)
            gradient = (low[rows] @ matrix.T).float().sub_(log_sum[rows, None]).exp_().neg_()  # (rows, V)
            gradient.scatter_add_(1, targets[rows, None], gradient.new_ones(()).expand(len(gradient), 1))
            gradient = gradient.mul_(above[0][rows, None]).to(ctx.dtype)
            if of_hidden is not None:
                torch.mm(gradient, matrix, out=of_hidden[rows])
            if of_weight is not None:
                of_weight += gradient.T @ low[rows]
        return None if of_hidden is None else of_hidden.to(hidden.dtype), of_weight, None


def linear_log_probs(hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    """Log softmax(weight @ hidden_n)[target_n] for each of N targets, (N,), in fp32, without an (N, V) tensor.

    Args:
        hidden: (N, C) last hidden states.
        weight: (V, C) the output matrix.
        targets: (N,) token ids.
    """
    found: Tensor = LinearLogProbs.apply(hidden, weight, targets)
    return found


def sum_by_document(values: Tensor, document: Tensor, documents: int) -> Tensor:
    """Sums of (N,) values by document index (N,) -> (documents,)."""
    return torch.zeros(documents, dtype=values.dtype, device=values.device).index_add(0, document, values)


def dpo(policy: Tensor, reference: Tensor, *, beta: float) -> tuple[Tensor, Tensor]:
    """Direct preference optimisation (Rafailov et al. 2023, eq. 7).

    Args:
        policy: (2, P) log-probabilities of P chosen and P rejected answers.
        reference: (2, P) the same under the frozen reference.
        beta: strength.

    Returns:
        the sum over pairs of -log sigmoid(beta * margin), and the margins (P,), without beta.
    """
    chosen, rejected = policy - reference  # each (P,)
    margin = chosen - rejected
    return -F.logsigmoid(beta * margin).sum(), margin
