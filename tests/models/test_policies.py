import pytest
import torch
from sklearn.datasets import load_sample_image
from torch import nn

from maep_lightning.evaluation import fingerprint
from maep_lightning.functional.patches import sincos_position_table
from maep_lightning.functional.straight_through import straight_through
from maep_lightning.functional.tiles import seam_ratio
from maep_lightning.models.policies import apply_policy
from maep_lightning.models.purifier import Purifier
from maep_lightning.models.registry import create_purifier

SMALL = {"width": 16, "depth": 1, "heads": 2, "decoder_width": 16, "decoder_heads": 2, "refine_width": 8}
POLICIES = ["native", "tile", "overlap", "interpolate", "resize"]


@pytest.fixture
def purifier():
    torch.manual_seed(0)
    purifier = create_purifier("maep_conv_patch4_32", **SMALL)
    for parameter in purifier.parameters():
        nn.init.normal_(parameter, std=0.2)
    return purifier.eval().requires_grad_(False)


class TowardsTheMean(nn.Module):
    """Leaves a step between neighbouring tiles, since each is drawn to a mean of its own."""

    def forward(self, images):
        return 0.5 * images + 0.5 * images.mean(dim=(2, 3), keepdim=True)


def photograph(height, width, name="china.jpg"):
    pixels = torch.from_numpy(load_sample_image(name).copy())[50 : 50 + height, 100 : 100 + width]
    return pixels.permute(2, 0, 1)[None].float() / 255


@pytest.mark.parametrize(("chunk", "dtype", "bound"), [(1, torch.float32, 0.0), (20, torch.float64, 1e-10)])
def test_tile__of_224_is_49_separate_purifications(purifier, chunk, dtype, bound):
    # One by one they agree to the bit. Several together differ by the order in which a batched product adds up, which
    # shows as the rounding of the type and nothing else.
    images = torch.rand(1, 3, 224, 224, dtype=dtype)
    whole = apply_policy(purifier.to(dtype), "tile", chunk)(images)
    for row in range(0, 224, 32):
        for col in range(0, 224, 32):
            window = (..., slice(row, row + 32), slice(col, col + 32))
            torch.testing.assert_close(whole[window], purifier(images[window]), rtol=0, atol=bound)


@pytest.mark.parametrize("policy", ["tile:16", "overlap:16"])
@pytest.mark.parametrize("size", [(32, 48), (41, 50), (12, 9)])
def test_tiles__purifier_that_changes_nothing_changes_nothing(policy, size):
    images = torch.rand(2, 3, *size)
    images[0, :, 0] = 0
    images[1, :, 0] = 1
    assert torch.equal(apply_policy(nn.Identity(), policy)(images), images)


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("size", [(48, 64), (50, 61)])
def test_policy__keeps_shape_and_range(purifier, policy, size):
    if policy == "native" and size == (50, 61):
        pytest.skip("the purifier itself takes multiples of its patch")
    images = torch.rand(2, 3, *size)
    served = apply_policy(purifier, policy)
    purified = served(images)
    assert purified.shape == images.shape
    assert purified.min() >= 0
    assert purified.max() <= 1
    assert torch.equal(purified, served(images))
    assert not any(module.training for module in served.modules())


@pytest.mark.parametrize("policy", POLICIES)
def test_policy__gradient_agrees_with_finite_differences(purifier, policy):
    for parameter in purifier.parameters():  # so small that nothing is clamped, where there is no derivative
        parameter *= 0.3
    served = apply_policy(purifier, policy, chunk=3).double()
    size = (48, 64) if policy == "native" else (50, 61)
    images = torch.rand(1, 3, *size, dtype=torch.float64) * 0.1 + 0.45
    weight, direction = torch.randn(2, 1, 3, *size, dtype=torch.float64)
    x = images.clone().requires_grad_()
    (gradient,) = torch.autograd.grad((served(x) * weight).sum(), x)
    step = 1e-7
    numeric = ((served(images + step * direction) - served(images - step * direction)) * weight).sum() / (2 * step)
    torch.testing.assert_close((gradient * direction).sum(), numeric, rtol=1e-5, atol=1e-6)


class Whitened(nn.Module):
    """White, with the gradient of the identity."""

    def forward(self, images):
        return straight_through(images, torch.ones_like(images))


@pytest.mark.parametrize(
    ("policy", "images"),
    [
        ("overlap", torch.rand(1, 3, 40, 40, generator=torch.Generator().manual_seed(0))),
        ("resize", torch.ones(1, 3, 40, 40)),
    ],
)
def test_policy__that_averages_keeps_the_gradient_of_white_pixels(policy, images):
    """A mean of white pixels passes 1 by rounding, where a clamp would cut the gradient off."""
    x = images.clone().requires_grad_()
    whitened = apply_policy(Whitened(), f"{policy}:16")(x)
    assert whitened.max() == 1
    (gradient,) = torch.autograd.grad(whitened.sum(), x)
    torch.testing.assert_close(gradient.sum(), torch.tensor(float(images.numel())))


@pytest.mark.parametrize("policy", ["tile", "overlap", "interpolate"])
def test_chunks__change_neither_images_nor_gradients(purifier, policy):
    results = []
    images = torch.rand(3, 3, 64, 64, dtype=torch.float64, requires_grad=True)  # what is left is rounding
    for chunk in (1000, 4):
        purified = apply_policy(purifier.double(), policy, chunk)(images)
        results.append((purified, torch.autograd.grad(purified.square().sum(), images)[0]))
    for whole, chunked in zip(*results, strict=True):
        torch.testing.assert_close(chunked, whole, rtol=0, atol=1e-9)


@pytest.mark.parametrize("policy", ["tile", "overlap"])
def test_chunks__bound_what_is_kept_for_the_gradient(purifier, policy):
    def kept(chunk):
        sizes = {}
        images = torch.rand(1, 3, 128, 128, requires_grad=True)

        def pack(tensor):
            storage = tensor.untyped_storage()
            sizes[storage.data_ptr()] = storage.nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            purified = apply_policy(purifier, policy, chunk)(images)
        assert purified.requires_grad
        return sum(sizes.values())

    assert kept(4) < 0.2 * kept(1000)


def test_overlap__leaves_no_seam_where_tile_leaves_one():
    images = photograph(224, 320)
    tile, overlap = (apply_policy(TowardsTheMean(), policy)(images) for policy in ("tile:32", "overlap:32"))
    assert seam_ratio(tile, images, 32) > 1.5
    assert abs(seam_ratio(overlap, images, 32) - 1) < 0.1
    assert abs(seam_ratio(overlap, images, 16) - 1) < 0.1


def test_overlap__of_the_shipped_purifier_has_no_seam_on_photographs_where_tile_has_one():
    """A single ratio strays too far from 1, so it is compared with that of `interpolate`, which has no borders."""
    purifier = Purifier.from_pretrained("maep_conv_patch4_32_cifar10").requires_grad_(False)
    clean = torch.cat([photograph(224, 160, name) for name in ("china.jpg", "flower.jpg")]).repeat(3, 1, 1, 1)
    noise = torch.randn(clean.shape, generator=torch.Generator().manual_seed(0)).sign() * 4 / 255
    images = (clean + noise).clamp(0, 1)

    def ratios(policy, period):
        pairs = zip(served[policy], images, strict=True)
        return torch.stack([seam_ratio(one[None], image[None], period, patch=4) for one, image in pairs])

    served = {policy: apply_policy(purifier, policy)(images) for policy in ("tile", "overlap", "interpolate")}
    beyond = {
        (policy, period): float((ratios(policy, period) - ratios("interpolate", period)).mean())
        for policy in ("tile", "overlap")
        for period in (16, 32)
    }
    assert abs(beyond["overlap", 16]) < 0.1
    assert abs(beyond["overlap", 32]) < 0.1
    assert abs(beyond["tile", 32]) > 0.1


def test_interpolate__is_the_purifier_at_its_own_size_and_another_beyond(purifier):
    images = torch.rand(1, 3, 64, 64)
    served = apply_policy(purifier, "interpolate")
    assert torch.equal(served(images[..., :32, :32]), purifier(images[..., :32, :32]))
    extrapolated = purifier(images)
    assert not torch.allclose(served(images), extrapolated, atol=1e-3)
    assert torch.equal(purifier(images), extrapolated)  # which was not changed itself


def test_interpolate__finer_grid_lies_between_the_positions_of_training():
    table, finer = sincos_position_table(16, (4, 4)), sincos_position_table(16, (7, 10), span=4)
    torch.testing.assert_close(finer.view(7, 10, -1)[::2, ::3], table.view(4, 4, -1))


def test_resize__takes_away_what_the_small_image_cannot_show(purifier):
    served = apply_policy(purifier, "resize")
    board = (torch.arange(64)[:, None] + torch.arange(64)) % 2
    images = board.float().expand(1, 3, 64, 64)
    torch.testing.assert_close(served(images)[..., 4:-4, 4:-4], torch.full((1, 3, 56, 56), 0.5), rtol=0, atol=0.02)
    small = torch.rand(1, 3, 32, 32)
    torch.testing.assert_close(served(small), small)
    assert not list(served.parameters())


def test_apply_policy__says_what_it_is_and_fingerprints_tell_it(purifier):
    assert apply_policy(purifier) is purifier
    names = ["tile", "tile:16", "overlap", "overlap:16", "interpolate", "resize", "resize:16"]
    served = [apply_policy(purifier, name) for name in names]
    assert [network.policy for network in served] == names
    assert len({fingerprint.of_architecture(network) for network in [purifier, *served]}) == 8
    chunked = apply_policy(purifier, "tile", chunk=2)
    assert fingerprint.of_architecture(chunked) == fingerprint.of_architecture(served[0])


@pytest.mark.parametrize(
    ("policy", "message"),
    [
        ("tyle", "Did you mean tile"),
        ("tile:big", "names no size in pixels; write tile:32"),
        ("interpolate:32", r"known are native, interpolate, tile\[:SIZE\]"),
        ("overlap:15", "must be even, not 15"),
    ],
)
def test_apply_policy__explains_mistakes(purifier, policy, message):
    with pytest.raises(ValueError, match=message):
        apply_policy(purifier, policy)


def test_apply_policy__explains_what_a_purifier_lacks():
    with pytest.raises(ValueError, match="does not say what size it was trained on; name one, as in tile:32"):
        apply_policy(nn.Identity(), "tile")
    with pytest.raises(ValueError, match="no position table to interpolate"):
        apply_policy(nn.Identity(), "interpolate")
    with pytest.raises(ValueError, match="at least 1, not 0"):
        apply_policy(nn.Identity(), "native", chunk=0)
