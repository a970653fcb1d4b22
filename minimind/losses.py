"""Losses as pure functions of tensors. Each returns sums; the loop divides once."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def cross_entropy_sum(logits: Tensor, targets: Tensor) -> Tensor:
    """Sum over N targets of -log softmax(logits)[target], in fp32.

    Args:
        logits: (N, V).
        targets: (N,) token ids.
    """
    return F.cross_entropy(logits.float(), targets, reduction="sum")


def weighted_cross_entropy_sum(logits: Tensor, targets: Tensor, weights: Tensor) -> Tensor:
    """Sum over N targets of weight * -log softmax(logits)[target], in fp32; ``weights`` is (N,)."""
    return (F.cross_entropy(logits.float(), targets, reduction="none") * weights).sum()


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


def token_log_probs(logits: Tensor, targets: Tensor) -> Tensor:
    """Log softmax(logits)[target] for each of N targets, (N,), in fp32."""
    return -F.cross_entropy(logits.float(), targets, reduction="none")


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
