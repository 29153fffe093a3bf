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


@pytest.mark.parametrize(("norm", "least"), [("Linf", 0.0), ("L2", 0.5 - 1e-5)])
def test_pgd__starts_inside_the_ball_in_linf_and_on_its_surface_in_l2(norm, least):
    images, generator = torch.full((8, 3, 8, 8), 0.5), torch.Generator().manual_seed(0)
    start = pgd(torch.nn.Identity(), images, torch.arange(8), 0.5, 0.1, 0, norm, generator=generator) - images
    sizes = start.abs().flatten() if norm == "Linf" else start.flatten(1).norm(dim=1)
    assert least <= sizes.min() < least + 0.01
    assert sizes.max() <= 0.5 + 1e-6


@pytest.mark.parametrize("norm", ["Linf", "L2"])
def test_pgd__takes_a_radius_for_each_sample(linear, norm):
    weight, images, labels = linear
    eps = torch.linspace(0.02, 0.2, 40).view(-1, 1, 1, 1)

    def attack(rows, eps):
        return pgd(lambda x: x.flatten(1) @ weight.T, images[rows], labels[rows], eps, eps, 3, norm, False)

    together = attack(slice(None), eps)
    alone = torch.cat([attack([row], float(eps[row])) for row in range(40)])
    torch.testing.assert_close(together, alone)


@pytest.mark.oracle
@pytest.mark.parametrize("norm", ["Linf", "L2"])
def test_pgd__momentum_is_algorithm_1_of_dong_et_al(norm):
    torch.manual_seed(0)
    network = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(12, 8), torch.nn.Tanh(), torch.nn.Linear(8, 3))
    network[1].weight.data *= 20  # so curved that the gradient turns from step to step
    image, label, decay, step, eps = torch.rand(1, 3, 2, 2) * 0.4 + 0.3, torch.tensor([1]), 0.9, 0.12, 0.3
    velocity, x = torch.zeros_like(image), image.clone()
    for _ in range(4):
        point = x.clone().requires_grad_()
        loss = -network(point).softmax(1)[0, 1].log()
        (gradient,) = torch.autograd.grad(loss, point)
        velocity = decay * velocity + gradient / gradient.abs().sum()
        moved = x + step * (velocity.sign() if norm == "Linf" else velocity / velocity.square().sum().sqrt()) - image
        size = moved.square().sum().sqrt()
        x = image + (moved.clamp(-eps, eps) if norm == "Linf" else moved * min(1.0, float(eps / size)))
    found = pgd(network, image, label, eps, step, 4, norm, random_start=False, momentum=decay)
    torch.testing.assert_close(found, x, atol=1e-6, rtol=0)
    assert not torch.allclose(found, pgd(network, image, label, eps, step, 4, norm, random_start=False), atol=1e-4)


def test_pgd__works_where_gradients_are_switched_off(linear):
    weight, images, labels = linear
    with torch.no_grad():
        attacked = pgd(lambda x: x.flatten(1) @ weight.T, images, labels, 0.1, 0.05, 3)
    assert (attacked - images).abs().max() > 0.05


def test_pgd__refuses_an_eps_of_8():
    with pytest.raises(ValueError, match="8/255"):
        pgd(lambda x: x.flatten(1), torch.rand(1, 3, 2, 2), torch.zeros(1, dtype=torch.long), 8, 2, 1)


@pytest.mark.oracle
def test_pgd__averages_each_gradient_over_the_draws_of_a_stochastic_model(linear):
    """Each call throws another weight: a step goes along the mean gradient, which no single draw has."""
    _, images, labels = linear
    weights = (
        torch.randn(3, 2, 12, generator=torch.Generator().manual_seed(1)) * torch.tensor([1.0, 4.0, 9.0])[:, None, None]
    )
    calls = iter([*weights, *weights])
    attacked = pgd(lambda x: x.flatten(1) @ next(calls).T, images, labels, 0.1, 0.02, 2, random_start=False, draws=3)
    expected = images.clone()
    for _ in range(2):
        logits = torch.einsum("bp,vkp->vbk", expected.flatten(1), weights)
        wrong = logits.softmax(-1)[..., 1]
        gradient = torch.einsum("vb,vp->bp", wrong, weights[:, 1] - weights[:, 0])
        expected = expected + 0.02 * gradient.view_as(images).sign()
    torch.testing.assert_close(attacked, expected, atol=1e-6, rtol=0)
    assert next(calls, None) is None
