import pytest
import torch
from torch import nn

from maep_lightning.attacks.bpda import StraightThrough


class Rounding(nn.Module):
    def forward(self, images):
        return (images * 4).round() / 4


def test_straight_through__exact_forward_and_identity_backward():
    module = StraightThrough(Rounding().eval())
    assert not module.training
    images = torch.rand(2, 3, 4, 4, requires_grad=True)
    weight = torch.randn(2, 3, 4, 4)
    out = module(images)
    assert torch.equal(out, Rounding()(images))
    (gradient,) = torch.autograd.grad((out * weight).sum(), images)
    assert torch.equal(gradient, weight)


def test_straight_through__needs_a_purifier_that_keeps_the_shape():
    with pytest.raises(ValueError, match="keeps the shape"):
        StraightThrough(nn.AvgPool2d(2).eval())(torch.rand(1, 3, 4, 4))
