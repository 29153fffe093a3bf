import pytest
import torch
import torch.nn.functional as F

from maep_lightning.functional.tiles import (
    center_crop,
    cut_tiles,
    hann_window,
    join_tiles,
    padded_side,
    reflect_pad,
    seam_ratio,
)


@pytest.mark.parametrize(
    ("side", "stride", "padded"), [(224, 32, 224), (225, 32, 256), (20, 32, 32), (224, 16, 224), (41, 16, 48)]
)
def test_padded_side__is_the_next_that_tiles_cover(side, stride, padded):
    assert padded_side(side, 32, stride) == padded


@pytest.mark.oracle
@pytest.mark.parametrize("extra", [(0, 0), (5, 0), (4, 7), (18, 16)])
def test_reflect_pad__is_that_of_torch_and_is_cropped_back(extra):
    images = torch.rand(2, 3, 10, 9, requires_grad=True)
    padded = reflect_pad(images, 10 + extra[0], 9 + extra[1])
    top, left = extra[0] // 2, extra[1] // 2
    expected = F.pad(images, (left, extra[1] - left, top, extra[0] - top), mode="reflect")
    assert torch.equal(padded, expected)
    assert torch.equal(center_crop(padded, 10, 9), images)
    weight = torch.rand_like(padded)
    gradients = [torch.autograd.grad((x * weight).sum(), images)[0] for x in (padded, expected)]
    torch.testing.assert_close(*gradients)


@pytest.mark.parametrize("shape", [(10, 9), (2, 5), (1, 31), (1, 1)])
def test_reflect_pad__mirrors_small_images_as_often_as_it_takes(shape):
    images = torch.rand(1, 3, *shape, requires_grad=True)
    padded = reflect_pad(images, 32, 32)
    rows, columns = ([_mirrored(i - (32 - side) // 2, side) for i in range(32)] for side in shape)
    assert torch.equal(padded, images[:, :, rows][..., columns])
    assert torch.equal(center_crop(padded, *shape), images)


def _mirrored(place, side):
    """Where a ball is that bounces between the first and the last pixel."""
    while side > 1 and not 0 <= place < side:
        place = -place if place < 0 else 2 * (side - 1) - place
    return place if side > 1 else 0


def test_cut_tiles__come_image_by_image_and_row_by_row():
    images = torch.rand(2, 3, 8, 12)
    tiles = cut_tiles(images, 4, 4)
    assert torch.equal(tiles[0], images[0, :, :4, :4])
    assert torch.equal(tiles[5], images[0, :, 4:, 8:])
    assert torch.equal(tiles[7], images[1, :, :4, 4:8])
    assert torch.equal(join_tiles(tiles, 8, 12, 4), images)


def slices(images, size, stride):
    """The tiles by their definition."""
    h, w = images.shape[-2:]
    places = [(y, x) for y in range(0, h - size + 1, stride) for x in range(0, w - size + 1, stride)]
    return torch.stack([images[:, :, y : y + size, x : x + size] for y, x in places], dim=1).flatten(0, 1)


LAYOUTS = {
    "contiguous": lambda x: x,
    "channels_last": lambda x: x.contiguous(memory_format=torch.channels_last),
    "transposed": lambda x: x.transpose(2, 3).contiguous().transpose(2, 3),
    "cropped": lambda x: F.pad(x, (1, 2, 2, 1))[:, :, 2:-1, 1:-2],
    "expanded": lambda x: x[:1].expand(len(x), -1, -1, -1),
}


@pytest.mark.oracle
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(("size", "stride", "shape"), [(4, 4, (8, 12)), (4, 4, (4, 4)), (4, 2, (8, 12))])
def test_cut_and_join__are_slices_and_their_sum_with_exact_gradients(layout, size, stride, shape):
    images = LAYOUTS[layout](torch.rand(2, 3, *shape)).requires_grad_()
    expected, tiles = slices(images, size, stride), cut_tiles(images, size, stride)
    assert torch.equal(tiles, expected)
    assert tiles.is_contiguous()
    joined = join_tiles(tiles, *shape, stride)
    assert joined.is_contiguous()
    if stride == size:
        assert torch.equal(joined, images)
    weight = LAYOUTS[layout](torch.randint(-8, 8, tiles.shape).float())  # whole numbers, whose sums are exact
    gradients = [torch.autograd.grad((x * weight).sum(), images)[0] for x in (tiles, expected)]
    assert torch.equal(*gradients)

    parts = LAYOUTS[layout](torch.randint(-8, 8, tiles.shape).float()).requires_grad_()
    target = torch.randint(-8, 8, images.shape).float()
    (gradient,) = torch.autograd.grad((join_tiles(parts, *shape, stride) * target).sum(), parts)
    assert torch.equal(gradient, slices(target, size, stride))


def test_join_tiles__adds_up_where_tiles_overlap():
    tiles = cut_tiles(torch.ones(1, 1, 8, 8), 4, 2)
    side = torch.tensor([1.0, 1, 2, 2, 2, 2, 1, 1])
    assert torch.equal(join_tiles(tiles, 8, 8, 2)[0, 0], side[:, None] * side)


def test_hann_window__sums_to_one_where_tiles_overlap_and_is_positive():
    window = hann_window(16)
    assert window.min() > 0
    joined = join_tiles(window.expand(9, 1, 16, 16), 32, 32, 8)[0, 0, 8:-8, 8:-8]
    torch.testing.assert_close(joined, torch.ones(16, 16))


def test_seam_ratio__is_one_without_tiles_and_counts_steps_between_them():
    torch.manual_seed(0)
    images, noise = torch.rand(8, 3, 64, 64), torch.randn(8, 3, 64, 64)
    assert seam_ratio(images + 0.1 * noise, images, 16) == pytest.approx(1, abs=0.03)
    ramp = torch.arange(64.0) + 2 * (torch.arange(64) // 16)  # steps of 1 inside tiles, of 3 between them
    assert seam_ratio(ramp[:, None] + ramp.expand(1, 1, 64, 64), torch.zeros(1), 16) == pytest.approx(3)


def test_seam_ratio__does_not_take_patches_for_tiles():
    step = (torch.arange(64) // 4).float()
    correction = (step[:, None] + step).expand(1, 3, 64, 64)
    assert seam_ratio(correction, torch.zeros(1), 16, patch=4) == pytest.approx(1)
