import torch

from maep_lightning.functional.straight_through import straight_through


def test_straight_through__value_of_one_and_gradient_of_the_other():
    images = torch.rand(2, 3, 4, 4, requires_grad=True)
    replaced = torch.rand(2, 3, 4, 4) * 1e-9  # where images + (replaced - images) would round it away
    weight = torch.randn(2, 3, 4, 4)
    out = straight_through(images, replaced)
    assert torch.equal(out, replaced)
    assert torch.equal(torch.autograd.grad((out * weight).sum(), images)[0], weight)
