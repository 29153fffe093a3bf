import pytest
import torch

from maep_lightning.data.splits import balanced_order


@pytest.mark.parametrize("seed", [0, 7])
def test_every_prefix_is_balanced(seed):
    labels = torch.tensor([0] * 30 + [1] * 30 + [2] * 30)
    order = balanced_order(labels, seed)
    assert sorted(order.tolist()) == list(range(90))
    for length in range(1, 91):
        counts = torch.bincount(labels[order[:length]], minlength=3)
        assert counts.max() - counts.min() <= 1


def test_unequal_classes_keep_their_share():
    labels = torch.tensor([0] * 80 + [1] * 20)
    order = balanced_order(labels, 0)
    for length in range(1, 101):
        assert abs((labels[order[:length]] == 1).sum() - length * 0.2) <= 1


def test_seed_decides_the_order():
    labels = torch.arange(50) % 5
    assert torch.equal(balanced_order(labels, 3), balanced_order(labels, 3))
    assert not torch.equal(balanced_order(labels, 3), balanced_order(labels, 4))


def test_order_is_the_same_on_every_machine():
    assert balanced_order(torch.arange(8) % 2, 0).tolist() == [6, 1, 2, 7, 3, 0, 5, 4]
