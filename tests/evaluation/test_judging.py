import pytest
import torch

from maep_lightning.attacks.target import MOST_SUSPECTS
from maep_lightning.evaluation.judging import confine, distance, suspects


@pytest.mark.parametrize(("norm", "expected"), [("Linf", 0.4), ("L2", 0.5), ("L1", 0.7)])
def test_distance__three_four_five(norm, expected):
    images = torch.full((1, 3, 2, 2), 0.5)
    attacked = images.clone()
    attacked[0, 0, 0, 0] += 0.3
    attacked[0, 1, 1, 0] -= 0.4
    assert distance(attacked, images, norm).item() == pytest.approx(expected, abs=1e-7)


@pytest.mark.parametrize("norm", ["Linf", "L2", "L1"])
def test_confine__rounding_is_repaired_and_more_is_refused(norm):
    images = torch.rand(3, 3, 4, 4, generator=torch.Generator().manual_seed(0)) * 0.8 + 0.1
    step = torch.randn(images.shape, generator=torch.Generator().manual_seed(1))
    step = step / distance(images + step, images, norm).view(-1, 1, 1, 1)
    eps = 0.05
    scale = torch.tensor([0.999, 1.00005, 1.01]).view(-1, 1, 1, 1) * eps
    attacked = (images.double() + step * scale).float()
    confined, inside = confine(attacked, images, norm, eps)
    assert inside.tolist() == [True, True, False]
    assert (distance(confined, images, norm)[:2] <= eps + 1e-6).all()
    assert torch.equal(confined[0], attacked[0])


def test_confine__nan_and_far_outside_the_pixel_range_are_refused():
    images = torch.zeros(3, 3, 2, 2)
    attacked = images.clone()
    attacked[0, 0, 0, 0] = float("nan")
    attacked[1, 0, 0, 0] = -0.01
    attacked[2, 0, 0, 0] = -1e-6
    confined, inside = confine(attacked, images, "Linf", 0.1)
    assert inside.tolist() == [False, False, True]
    assert confined[2].min() == 0


def test_suspects__near_samples_or_all():
    images = torch.stack([torch.zeros(3, 2, 2), torch.ones(3, 2, 2)])
    assert suspects([images[1] - 0.05], images, "Linf", 0.1).tolist() == [False, True]
    assert suspects([images[1] - 0.5], images, "Linf", 0.1).tolist() == [True, True]
    lost = torch.full((3, 2, 2), float("nan"))
    assert suspects([images[1] - 0.05, lost], images, "Linf", 0.1).tolist() == [False, True]
    assert suspects([lost], images, "Linf", 0.1).tolist() == [True, True]
    assert suspects([], images, "Linf", 0.1).tolist() == [False, False]


def test_suspects__of_more_points_than_are_looked_at_are_all_samples():
    images = torch.stack([torch.zeros(3, 2, 2), torch.ones(3, 2, 2)])
    assert suspects([images[1]] * MOST_SUSPECTS, images, "Linf", 0.1).tolist() == [False, True]
    assert suspects([images[1]] * (MOST_SUSPECTS + 1), images, "Linf", 0.1).tolist() == [True, True]
