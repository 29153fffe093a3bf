import pytest
import torch
from torch import nn

from maep_lightning.attacks.simple import SIMPLE, random_corner, simple_attack

EPS = 0.05


@pytest.fixture
def linear():
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(48, 2)).eval()


@pytest.fixture
def images():
    return torch.rand(6, 3, 4, 4, generator=torch.Generator().manual_seed(1)) * 0.6 + 0.2


def best_direction(linear, labels):
    """For two classes the gradient of the loss has one direction everywhere: from the label's weight to the other's."""
    weight = linear[1].weight.detach()
    return (weight[1 - labels] - weight[labels]).view(-1, 3, 4, 4)


@pytest.mark.oracle
@pytest.mark.parametrize("name", sorted(SIMPLE))
def test_simple_attack__linf_ends_in_the_corner_that_a_linear_model_has_as_its_worst(linear, images, name):
    labels = torch.tensor([0, 1, 0, 1, 1, 0])
    attacked = simple_attack(linear, images, labels, name, EPS, generator=torch.Generator().manual_seed(2))
    torch.testing.assert_close(attacked, images + EPS * best_direction(linear, labels).sign())


@pytest.mark.oracle
@pytest.mark.parametrize("name", sorted(SIMPLE))
def test_simple_attack__l2_ends_where_a_linear_model_is_worst(linear, images, name):
    labels = torch.tensor([0, 1, 0, 1, 1, 0])
    attacked = simple_attack(linear, images, labels, name, EPS, "L2", generator=torch.Generator().manual_seed(2))
    direction = best_direction(linear, labels)
    expected = images + EPS * direction / direction.flatten(1).norm(dim=1).view(-1, 1, 1, 1)
    # Random starts approach the pole step by step.
    tolerance = 5e-3 if SIMPLE[name].random_start else 1e-5
    torch.testing.assert_close(attacked, expected, atol=tolerance, rtol=0)


def test_simple_attack__random_starts_differ_and_are_reproducible(images):
    torch.manual_seed(0)
    flat = nn.Sequential(nn.Flatten(), nn.Linear(48, 3)).eval()
    nn.init.zeros_(flat[1].weight)  # no gradient: what is left is the start
    labels = torch.zeros(6, dtype=torch.int64)
    first, again, other = (
        simple_attack(flat, images, labels, "pgd", EPS, generator=torch.Generator().manual_seed(seed))
        for seed in (1, 1, 2)
    )
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


@pytest.mark.parametrize(("norm", "order"), [("Linf", torch.inf), ("L2", 2), ("L1", 1)])
def test_random_corner__lies_on_the_sphere(images, norm, order):
    moved = random_corner(images, EPS, norm, torch.Generator().manual_seed(0))
    sizes = torch.linalg.vector_norm((moved - images).flatten(1), order, dim=1)
    torch.testing.assert_close(sizes, torch.full((6,), EPS))
    if norm == "Linf":
        assert ((moved - images).abs() - EPS).abs().max() < 1e-6
    assert random_corner(torch.ones_like(images), EPS, norm, torch.Generator()).max() <= 1


def test_simple_attack__l1_is_refused(linear, images):
    with pytest.raises(ValueError, match="L1"):
        simple_attack(linear, images, torch.zeros(6, dtype=torch.int64), "fgsm", EPS, "L1")
