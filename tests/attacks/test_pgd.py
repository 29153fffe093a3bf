import pytest
import torch

from maep_lightning.attacks.pgd import pgd


@pytest.fixture
def linear():
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(2, 12, generator=generator)
    images = torch.rand(40, 3, 2, 2, generator=generator) * 0.4 + 0.3
    return weight, images, torch.zeros(40, dtype=torch.long)


def test_pgd__finds_the_optimum_of_a_linear_model(linear):
    # Of a two-class linear model the worst Linf point is known: every pixel moves by eps against w_0 - w_1.
    weight, images, labels = linear
    attacked = pgd(lambda x: x.flatten(1) @ weight.T, images, labels, 0.1, 0.05, 10)
    expected = images - 0.1 * (weight[0] - weight[1]).sign().view(1, 3, 2, 2)
    torch.testing.assert_close(attacked, expected, atol=1e-6, rtol=0)


def test_pgd__finds_the_optimum_of_a_linear_model_in_l2(linear):
    weight, images, labels = linear
    attacked = pgd(lambda x: x.flatten(1) @ weight.T, images, labels, 0.2, 0.1, 40, norm="L2")
    direction = (weight[0] - weight[1]) / (weight[0] - weight[1]).norm()
    torch.testing.assert_close(attacked, images - 0.2 * direction.view(1, 3, 2, 2), atol=2e-3, rtol=0)


@pytest.mark.parametrize(("norm", "eps"), [("Linf", 8 / 255), ("L2", 0.5)])
def test_pgd__stays_in_the_ball_and_in_the_pixel_range(norm, eps):
    images = torch.rand(8, 3, 8, 8).round()
    network = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(192, 10))
    attacked = pgd(network, images, torch.arange(8), eps, eps, 5, norm=norm)
    distance = (attacked - images).flatten(1)
    length = distance.abs().amax(1) if norm == "Linf" else distance.norm(dim=1)
    assert length.max() <= eps + 1e-6
    assert attacked.min() >= 0
    assert attacked.max() <= 1
    assert not attacked.requires_grad
    assert all(p.grad is None for p in network.parameters())


def test_pgd__works_where_gradients_are_switched_off(linear):
    weight, images, labels = linear
    with torch.no_grad():
        attacked = pgd(lambda x: x.flatten(1) @ weight.T, images, labels, 0.1, 0.05, 3)
    assert (attacked - images).abs().max() > 0.05


def test_pgd__refuses_an_eps_of_8():
    with pytest.raises(ValueError, match="8/255"):
        pgd(lambda x: x.flatten(1), torch.rand(1, 3, 2, 2), torch.zeros(1, dtype=torch.long), 8, 2, 1)
