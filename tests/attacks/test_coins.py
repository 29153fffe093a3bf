import torch
from torch import nn

from maep_lightning.attacks.coins import FixedCoins, fix_coins


class Noise(nn.Module):
    def forward(self, images):
        return images * torch.rand(images.shape, dtype=images.dtype)


def images(count=4):
    return torch.rand(count, 3, 5, 5, generator=torch.Generator().manual_seed(0))


def test_fixed_coins__every_image_meets_the_same_ones_whatever_the_batch():
    fixed, torch_state = FixedCoins(Noise().eval(), 3), torch.get_rng_state()
    whole = fixed(images())
    factors = whole / images()
    assert torch.allclose(factors, factors[:1].expand_as(factors), atol=1e-6)
    assert torch.equal(fixed(images()[[2]]), whole[[2]])
    assert torch.equal(torch.get_rng_state(), torch_state)
    assert not torch.allclose(FixedCoins(Noise().eval(), 4)(images()), whole)


def test_fixed_coins__has_the_gradient_of_what_it_computes():
    point = images().requires_grad_()
    fixed = FixedCoins(Noise().eval(), 3)
    (gradient,) = torch.autograd.grad(fixed(point).sum(), point)
    assert torch.allclose(gradient * images(), fixed(images()), atol=1e-6)


def test_fix_coins__takes_the_networks_own_way():
    class Own(Noise):
        def frozen(self, seed):
            return nn.Hardtanh(0, seed)

    assert isinstance(fix_coins(Own(), 2), nn.Hardtanh)
    assert isinstance(fix_coins(Noise(), 2), FixedCoins)
