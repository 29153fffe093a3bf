import pytest
import torch

from maep_lightning.functional.losses import (
    feature_distance,
    masked_patch_loss,
    normalize_patches,
    pixel_distance,
    visible_patch_loss,
)


@pytest.mark.parametrize(("kind", "expected"), [("l1", 2.0), ("l2", 4.0), ("charbonnier", (4 + 1e-6) ** 0.5)])
def test_pixel_distance__values(kind, expected):
    distance = pixel_distance(torch.tensor([1.0]), torch.tensor([3.0]), kind)
    torch.testing.assert_close(distance, torch.tensor([expected]))


def test_pixel_distance__names_what_it_knows():
    with pytest.raises(ValueError, match="l1, l2, charbonnier"):
        pixel_distance(torch.zeros(1), torch.zeros(1), "huber")


def test_feature_distance__is_a_share_of_each_layer_whatever_its_scale():
    small, large = torch.tensor([1.0, -3.0]), torch.tensor([[100.0], [300.0]])
    found = feature_distance([small + 1, large * 1.5], [small, large])
    assert found == pytest.approx((0.5 + 0.5) / 2)


def test_feature_distance__of_a_dead_layer_is_finite():
    assert feature_distance([torch.zeros(2)], [torch.zeros(2)]) == 0


def test_masked_patch_loss__counts_removed_patches_only():
    prediction, target = torch.zeros(1, 3, 2), torch.tensor([[[1.0, 3.0], [100.0, 100.0], [2.0, 2.0]]])
    loss = masked_patch_loss(prediction, target, torch.tensor([[1.0, 0.0, 1.0]]))
    assert loss == pytest.approx((5.0 + 4.0) / 2)


def test_masked_patch_loss__is_zero_and_has_a_gradient_when_nothing_is_masked():
    prediction = torch.rand(2, 4, 3, requires_grad=True)
    loss = masked_patch_loss(prediction, torch.rand(2, 4, 3), torch.zeros(2, 4))
    loss.backward()
    assert loss == 0
    assert torch.equal(prediction.grad, torch.zeros_like(prediction))


def test_visible_patch_loss__counts_the_patches_that_stayed():
    prediction, target = torch.zeros(1, 3, 2), torch.tensor([[[100.0, 100.0], [1.0, 3.0], [2.0, 2.0]]])
    assert visible_patch_loss(prediction, target, torch.tensor([[1.0, 0.0, 0.0]])) == pytest.approx((2.0 + 2.0) / 2)


def test_normalize_patches__standardises_each_patch():
    patches = normalize_patches(torch.rand(2, 5, 48) * 3 + 1)
    torch.testing.assert_close(patches.mean(-1), torch.zeros(2, 5), atol=1e-5, rtol=0)
    torch.testing.assert_close(patches.std(-1), torch.ones(2, 5), atol=1e-3, rtol=0)
