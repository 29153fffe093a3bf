"""Purifiers without weights, each against another library or a formula."""

import math

import numpy as np
import pytest
import torch
import torchvision
from PIL import Image
from scipy import ndimage

from maep_lightning.models.baselines import BitDepth, Gaussian, Identity, Jpeg, Median, Mirror, Noise, Resize
from maep_lightning.models.registry import load_purifier

ALL = ["identity", "jpeg:75", "bit-depth:4", "median:3", "gaussian:0.8", "resize:28", "mirror", "noise:8/255"]


def pictures(size=32, count=2):
    """Smooth, with edges, and black and white areas that filters and rounding must not push out of [0, 1]."""
    generator = torch.Generator().manual_seed(0)
    coarse = torch.rand(count, 3, 5, 5, generator=generator) * 1.6 - 0.3
    return torch.nn.functional.interpolate(coarse, (size, size), mode="bicubic").clamp(0, 1)


def gradient_of(purifier, images, weight):
    images = images.clone().requires_grad_()
    return torch.autograd.grad((purifier(images) * weight).sum(), images)[0]


@pytest.mark.parametrize("size", [32, 64])
@pytest.mark.parametrize("spec", ALL)
def test_baseline__keeps_shape_and_pixel_range(spec, size):
    images = pictures(size)
    assert (images == 1).any()
    assert (images == 0).any()
    purified = load_purifier(spec)(images)
    assert purified.shape == images.shape
    assert purified.dtype == images.dtype
    assert purified.min() >= 0
    assert purified.max() <= 1
    assert torch.equal(purified, images) == (spec == "identity")


@pytest.mark.oracle
@pytest.mark.filterwarnings("ignore:The image decoding:DeprecationWarning")
@pytest.mark.skipif(not hasattr(torchvision.io, "encode_jpeg"), reason="torchvision has given its codecs up")
@pytest.mark.parametrize("quality", [20, 75, 95])
def test_jpeg__is_torchvisions(quality):
    images = pictures()
    pixels = (images * 255).round().to(torch.uint8)
    expected = torch.stack([torchvision.io.decode_jpeg(torchvision.io.encode_jpeg(image, quality)) for image in pixels])
    assert torch.equal(Jpeg(quality)(images), expected / 255)


@pytest.mark.oracle
def test_mirror__is_pillows_and_its_gradient_is_mirrored_back():
    images = (pictures() * 255).round() / 255
    for image, mirrored in zip(images, Mirror()(images), strict=True):
        whole, other = (Image.fromarray((x * 255).byte().permute(1, 2, 0).numpy()) for x in (image, mirrored))
        assert whole.transpose(Image.Transpose.FLIP_LEFT_RIGHT).tobytes() == other.tobytes()
    weight = torch.rand(images.shape, generator=torch.Generator().manual_seed(1))
    assert torch.equal(gradient_of(Mirror(), images, weight), Mirror()(weight))


@pytest.mark.oracle
@pytest.mark.parametrize("bits", [1, 3, 8])
def test_bit_depth__is_the_nearest_of_evenly_spaced_values(bits):
    images = torch.linspace(0, 1, 3 * 32 * 32).view(1, 3, 32, 32)
    values = np.arange(2**bits) / (2**bits - 1)
    nearest = values[np.abs(images.numpy()[..., None] - values).argmin(-1)]
    purified = BitDepth(bits)(images)
    # Half way between two values, either is nearest.
    assert (purified - torch.from_numpy(nearest)).abs().gt(1e-6).sum() <= 2**bits
    assert len(purified.unique()) == 2**bits


@pytest.mark.oracle
@pytest.mark.parametrize("size", [3, 5])
def test_median__is_scipys(size):
    images = torch.rand(2, 3, 16, 12)
    expected = ndimage.median_filter(images.numpy(), size=(1, 1, size, size), mode="mirror")
    assert np.array_equal(Median(size)(images).numpy(), expected)


@pytest.mark.oracle
@pytest.mark.parametrize("sigma", [0.5, 0.8, 2.0])
def test_gaussian__is_scipys(sigma):
    images = pictures()
    radius = math.ceil(3 * sigma)
    expected = ndimage.gaussian_filter(images.numpy(), sigma, radius=radius, mode="mirror", axes=(2, 3))
    np.testing.assert_allclose(Gaussian(sigma)(images).numpy(), expected, atol=1e-6)


@pytest.mark.oracle
@pytest.mark.parametrize(("size", "between"), [(28, (32, 28)), (8, (9, 8))])
def test_resize__is_pillows(size, between):
    images = pictures(64)[..., :56]  # (64, 56): the shorter side is named, the other keeps the proportions
    expected = []
    for channel in images.flatten(0, 1):
        small = Image.fromarray(channel.numpy()).resize(between[::-1], Image.Resampling.BILINEAR)
        expected.append(np.asarray(small.resize((56, 64), Image.Resampling.BILINEAR)))
    purified = Resize(size)(images).flatten(0, 1).numpy()
    np.testing.assert_allclose(purified, np.clip(expected, 0, 1), atol=2e-6)


def test_noise__has_the_deviation_asked_for_and_the_seed_of_the_caller():
    grey = torch.full((8, 3, 32, 32), 0.5)
    torch.manual_seed(3)
    first = Noise(0.05)(grey)
    assert abs(float((first - grey).std()) - 0.05) < 1e-3
    assert not torch.equal(Noise(0.05)(grey), first)
    torch.manual_seed(3)
    assert torch.equal(Noise(0.05)(grey), first)


def test_noise_with_a_seed__is_the_same_for_every_image_batch_and_call():
    images, fixed = pictures(), Noise(0.05, seed=3)
    with torch.inference_mode():
        once = fixed(images).clone()
    torch.manual_seed(1)
    assert torch.equal(fixed(images), once)
    assert torch.equal(Noise(0.05).frozen(3)(images), once)
    assert torch.equal(fixed(images[1:]), once[1:])
    assert gradient_of(fixed, images, torch.ones_like(images)).max() == 1
    assert not torch.equal(Noise(0.05, seed=4)(images), once)
    grey = torch.full((1, 3, 64, 64), 0.5, dtype=torch.float64)
    assert abs(float((fixed(grey) - grey).std()) - 0.05) < 1e-3


@pytest.mark.parametrize("purifier", [Median(3), Gaussian(0.8), Resize(12), Noise(0.02, seed=0)])
def test_differentiable__gradient_agrees_with_finite_differences(purifier):
    generator = torch.Generator().manual_seed(0)
    images = 0.1 + 0.8 * torch.rand(1, 3, 16, 16, generator=generator, dtype=torch.float64)
    weight, direction = torch.randn(2, 1, 3, 16, 16, generator=generator, dtype=torch.float64)
    step = 1e-7
    ends = [(purifier(images + sign * step * direction) * weight).sum() for sign in (1, -1)]
    slope = (gradient_of(purifier, images, weight) * direction).sum()
    torch.testing.assert_close(slope, (ends[0] - ends[1]) / (2 * step), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("purifier", [Identity(), Jpeg(75), BitDepth(3)])
def test_straight_through__gradient_is_the_identitys_for_black_and_white_pixels_too(purifier):
    images, weight = pictures(), torch.randn(2, 3, 32, 32)
    assert torch.equal(gradient_of(purifier, images, weight), weight)


def test_gaussian__white_pixels_keep_their_gradient():
    """A constant image is its own mean but for rounding, and a clamp would cut that off."""
    white, weight = torch.ones(1, 3, 8, 8), torch.ones(1, 3, 8, 8)
    for purifier in (Gaussian(0.8), Resize(6), Median(3)):
        torch.testing.assert_close(gradient_of(purifier, white, weight).sum(), weight.sum())


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: Jpeg(0), "quality must be from 1 to 95"),
        (lambda: BitDepth(9), "bits must be from 1 to 8"),
        (lambda: Median(4), "must be odd"),
        (lambda: Gaussian(0.0), "must be positive"),
        (lambda: Noise(-1.0), "must be positive"),
        (lambda: Noise(18), "at most 1, as in noise:8/255, not 18"),
        (lambda: Gaussian(20.0)(pictures()), "reaches 60 pixels"),
        (lambda: Resize(32)(pictures()), "leaves images of 32x32 as they are"),
        (lambda: Identity()(torch.rand(2, 1, 8, 8)), r"not a tensor \(2, 1, 8, 8\)"),
    ],
)
def test_baseline__refuses_what_makes_no_sense(build, message):
    with pytest.raises(ValueError, match=message):
        build()
