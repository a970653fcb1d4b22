import pytest
import torch
import torch.nn.functional as F

from minimind import losses
from minimind.config import ModelConfig
from minimind.model import MiniMind

ROWS = (1, losses.ROWS, losses.ROWS * 2 + 17)


def parts(rows: int, *, seed: int = 0):
    generator = torch.Generator().manual_seed(seed)
    hidden = torch.randn(rows, 16, generator=generator).requires_grad_()
    weight = torch.randn(50, 16, generator=generator).requires_grad_()
    return hidden, weight, torch.randint(50, (rows,), generator=generator), torch.rand(rows, generator=generator) * 10


def gradients(value, *of):
    return torch.autograd.grad(value, of)


@pytest.mark.parametrize("rows", ROWS)
@pytest.mark.parametrize("weighted", [False, True])
def test_the_loss_by_rows_equals_cross_entropy_of_all_logits_gradients_included(rows, weighted):
    hidden, weight, targets, weights = parts(rows)
    each = F.cross_entropy(hidden @ weight.T, targets, reduction="none")
    wanted = (each * weights).sum() if weighted else each.sum()
    found = losses.linear_cross_entropy_sum(hidden, weight, targets, weights if weighted else None)
    torch.testing.assert_close(found, wanted)
    for ours, theirs in zip(
        gradients(found * 0.3, hidden, weight), gradients(wanted * 0.3, hidden, weight), strict=True
    ):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("rows", ROWS)
def test_log_probabilities_by_rows_equal_those_of_all_logits_gradients_included(rows):
    hidden, weight, targets, worth = parts(rows)
    wanted = -F.cross_entropy(hidden @ weight.T, targets, reduction="none")
    found = losses.linear_log_probs(hidden, weight, targets)
    torch.testing.assert_close(found, wanted)
    for ours, theirs in zip(
        gradients((found * worth).sum(), hidden, weight), gradients((wanted * worth).sum(), hidden, weight), strict=True
    ):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("function", [losses.linear_cross_entropy_sum, losses.linear_log_probs])
def test_a_frozen_output_matrix_gets_no_gradient(function):
    hidden, weight, targets, _ = parts(5)
    function(hidden, weight.detach(), targets).sum().backward()
    assert hidden.grad is not None


@pytest.mark.parametrize("function", [losses.linear_cross_entropy_sum, losses.linear_log_probs])
def test_no_target_at_all_is_a_loss_of_zero(function):
    hidden, weight, targets, _ = parts(0)
    value = function(hidden, weight, targets).sum()
    value.backward()
    assert float(value.detach()) == 0
    assert torch.equal(weight.grad, torch.zeros_like(weight))


@pytest.mark.parametrize("function", [losses.linear_cross_entropy_sum, losses.linear_log_probs])
def test_under_autocast_the_matrix_products_are_low_and_the_gradients_keep_their_types(function):
    hidden, weight, targets, _ = parts(300)
    exact = function(hidden, weight, targets).sum()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        low = function(hidden, weight, targets).sum()
    assert low.dtype == torch.float32
    assert 0 < abs(float(low) - float(exact)) < 0.01 * abs(float(exact))
    for ours, theirs in zip(gradients(low, hidden, weight), gradients(exact, hidden, weight), strict=True):
        assert ours.dtype == torch.float32
        assert float((ours - theirs).norm() / theirs.norm()) < 0.02


def test_a_head_sees_the_states_of_the_selected_positions_alone():
    torch.manual_seed(0)
    config = ModelConfig.for_arch("minimind2", hidden_size=32, num_hidden_layers=1, vocab_size=40)
    model, ids = MiniMind(config), torch.randint(40, (1, 9))
    select = torch.tensor([2, 5, 8])
    logits = model(ids, select=select)
    by_head = model(ids, select=select, head=lambda hidden, weight: hidden @ weight.T)
    torch.testing.assert_close(by_head, logits)
