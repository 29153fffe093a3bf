import pytest
import torch
import torch.nn.functional as F
from torch import nn

from maep_lightning.attacks.simple import SIMPLE, diverse_input, random_corner, simple_attack

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


@pytest.mark.oracle
def test_diverse_input__is_the_shrunk_image_at_any_place_of_a_black_canvas():
    generator = torch.Generator().manual_seed(0)
    images, seen = torch.rand(2, 3, 20, 40, generator=generator) + 0.1, set()
    for _ in range(200):
        moved = diverse_input(images, 1.0, generator)
        assert moved.shape == images.shape
        filled = (moved > 0).all(1).all(0)
        rows, columns = filled.any(1).nonzero()[:, 0], filled.any(0).nonzero()[:, 0]
        top, height, left, width = int(rows[0]), len(rows), int(columns[0]), len(columns)
        inside = F.interpolate(images, (height, width), mode="bilinear")
        torch.testing.assert_close(moved[..., top : top + height, left : left + width], inside)
        assert torch.count_nonzero(moved) == inside.numel()
        seen.add((height, width, top, left))
    heights, widths, tops, lefts = zip(*seen, strict=True)
    assert (min(heights), max(heights), min(widths), max(widths)) == (18, 19, 36, 39)
    assert ({*tops}, {*lefts}) == ({0, 1, 2}, {0, 1, 2, 3, 4})


def test_diverse_input__leaves_images_alone_as_often_as_it_is_told():
    images, generator = torch.rand(1, 3, 32, 32), torch.Generator().manual_seed(0)
    same = sum(diverse_input(images, 0.25, generator) is images for _ in range(2000))
    assert 0.7 < same / 2000 < 0.8


def test_di_mi_fgsm__finds_what_does_not_hang_on_the_place_of_a_pixel():
    """Of two ways to the wrong class, the one through a fine grid is twice as steep, and dies when resampled."""
    side = 40
    grid = torch.ones(side, side)
    grid[:, 1::2] = -1
    steep, broad = torch.stack([grid] * 3) * 2, torch.ones(3, side, side)
    weight = torch.stack([torch.zeros(3, side, side), (steep + broad)])
    model = nn.Sequential(nn.Flatten(), nn.Linear(3 * side * side, 2, bias=False)).eval()
    model[1].weight.data = weight.flatten(1) / weight.numel()
    images, labels = torch.full((1, 3, side, side), 0.5), torch.tensor([0])
    gain = {}
    for name in ("mi-fgsm", "di-mi-fgsm"):
        torch.manual_seed(0)
        delta = simple_attack(model, images, labels, name, EPS) - images
        assert delta.abs().max() <= EPS + 1e-6
        gain[name] = float((delta * broad).sum())
    assert gain["di-mi-fgsm"] > gain["mi-fgsm"] + 0.1 * EPS * broad.numel()


def test_di_mi_fgsm__without_diversity_is_mi_fgsm(monkeypatch, linear, images):
    labels = torch.tensor([0, 1, 0, 1, 1, 0])
    plain = simple_attack(linear, images, labels, "mi-fgsm", EPS)
    monkeypatch.setattr("maep_lightning.attacks.simple.diverse_input", lambda images, *_: images)
    assert torch.equal(simple_attack(linear, images, labels, "di-mi-fgsm", EPS), plain)
