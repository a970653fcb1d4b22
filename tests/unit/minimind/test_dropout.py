"""Masks are a function of the sample: fair, scaled, and the same in any company."""

import numpy as np
import pytest
import torch

from minimind.config import ModelConfig
from minimind.dropout import Dropout, Place, keys
from minimind.model import MiniMind


def some(documents, lengths, *, seed=3, epoch=1, share=0.3, width=None):
    return Dropout(share=share, keys=keys(seed, epoch, np.array(documents), lengths, width))


def test_the_share_is_kept_in_every_row_and_column_and_the_mean_stays():
    dropped = some([5, 9], [300, 212])(torch.ones(1, 512, 400), Place.RESIDUAL)[0]
    kept = (dropped > 0).float()
    assert kept.mean() == pytest.approx(0.7, abs=0.005) and dropped.mean() == pytest.approx(1, abs=0.01)
    for dim in (0, 1):  # 6 standard deviations of a binomial mean
        assert (kept.mean(dim) - 0.7).abs().max() < 6 * (0.21 / kept.shape[dim]) ** 0.5


@pytest.mark.parametrize(
    "other",
    [
        some([5], [64], seed=4),
        some([5], [64], epoch=2),
        some([6], [64]),
        some([5 + (1 << 32)], [64]),
        some([5], [64], seed=3 + (1 << 32)),
    ],
)
def test_seed_epoch_and_document_each_give_masks_of_their_own(other):
    x = torch.ones(1, 64, 64)
    agree = ((some([5], [64])(x, Place.RESIDUAL) > 0) == (other(x, Place.RESIDUAL) > 0)).float().mean()
    assert agree == pytest.approx(0.7**2 + 0.3**2, abs=0.05)


def test_layers_and_places_do_not_share_masks():
    x, dropout = torch.ones(1, 64, 64), some([5], [64])
    masks = [layer(x, place) > 0 for place in Place for layer in dropout.by_layer(3)]
    for i, one in enumerate(masks):
        for other in masks[:i]:
            assert (one == other).float().mean() == pytest.approx(0.58, abs=0.05)


def tiny(arch="minimind2", *, moe=False):
    torch.manual_seed(0)
    config = ModelConfig.for_arch(arch, hidden_size=32, num_hidden_layers=2, vocab_size=50, use_moe=moe)
    return MiniMind(config).train()


@pytest.mark.parametrize("moe", [False, True])
def test_a_text_is_dropped_from_alike_packed_padded_and_alone(moe):
    model, ids = tiny(moe=moe), [torch.randint(0, 50, (1, n)) for n in (5, 9, 7)]
    model.dropout = some([1, 2, 3], [5, 9, 7])
    packed = model(torch.cat(ids, 1), lengths=(5, 9, 7))[0].split([5, 9, 7])
    model.dropout = some([1, 2, 3], [5, 9, 7], width=9)
    padded = model(torch.cat([torch.nn.functional.pad(x, (0, 9 - x.shape[1])) for x in ids]))
    for number, x in enumerate(ids):
        model.dropout = some([number + 1], [x.shape[1]])
        alone = model(x)[0]
        assert torch.allclose(packed[number], alone, atol=1e-5)
        assert torch.allclose(padded[number, : x.shape[1]], alone, atol=1e-5)


def test_nothing_is_dropped_in_evaluation_and_a_share_of_nothing_changes_nothing():
    model, ids = tiny(), torch.randint(0, 50, (1, 12))
    plain = model(ids)
    model.dropout = some([1], [12], share=0.0)
    assert torch.allclose(model(ids), plain, atol=1e-5), "its own attention is the kernel's"
    model.dropout = some([1], [12])
    assert not torch.allclose(model(ids), plain, atol=1e-2)
    assert torch.equal(model.eval()(ids), plain) or torch.allclose(model(ids), plain, atol=1e-6)
