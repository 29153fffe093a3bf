import pytest
import torch
import torch.nn.functional as F
from torchvision.transforms.v2 import functional

from maep_lightning.data.augment import random_crop, random_resized_crop, resized_crop
from maep_lightning.functional.augment import random_flip


@pytest.fixture
def images():
    return torch.arange(6 * 3 * 7 * 9).view(6, 3, 7, 9).float()


def crops_by_padding(image, padding):
    padded = F.pad(image, (padding,) * 4, mode="reflect")
    height, width = image.shape[-2:]
    moves = [(y, x) for y in range(2 * padding + 1) for x in range(2 * padding + 1)]
    return {move: padded[:, move[0] : move[0] + height, move[1] : move[1] + width] for move in moves}


def test_each_image_is_a_crop_of_its_reflection_padding(images):
    generator = torch.Generator().manual_seed(0)
    seen = set()
    for _ in range(40):
        for image, cropped in zip(images, random_crop(images, 2, generator), strict=True):
            found = [move for move, crop in crops_by_padding(image, 2).items() if torch.equal(crop, cropped)]
            assert len(found) == 1
            seen.add(found[0])
    assert len(seen) == 25


def test_images_of_a_batch_move_independently():
    image = torch.rand(1, 3, 16, 16)
    cropped = random_crop(image.expand(64, -1, -1, -1), 4, torch.Generator().manual_seed(0))
    assert len({crop.numpy().tobytes() for crop in cropped}) > 30


def test_generator_decides(images):
    first, second = (random_crop(images, 2, torch.Generator().manual_seed(5)) for _ in range(2))
    assert torch.equal(first, second)


def test_bytes_stay_bytes(images):
    assert random_crop(images.byte(), 2).dtype == torch.uint8


def test_zero_padding_changes_nothing(images):
    assert torch.equal(random_crop(images, 0), images)


@pytest.mark.parametrize("padding", [-1, 7])
def test_padding_beyond_the_image_is_refused(images, padding):
    with pytest.raises(ValueError, match="7x9"):
        random_crop(images, padding)


@pytest.mark.oracle
@pytest.mark.parametrize("size", [8, 23])
def test_resized_crop__is_that_of_torchvision(size):
    images = torch.rand(4, 3, 21, 30, generator=torch.Generator().manual_seed(0))
    boxes = torch.tensor([[0, 0, 21, 30], [3, 7, 5, 20], [20, 29, 1, 1], [4, 0, 17, 8]])
    ours = resized_crop(images, *boxes.T, size)
    for image, (top, left, rows, columns), crop in zip(images, boxes.tolist(), ours, strict=True):
        theirs = functional.resized_crop(image, top, left, rows, columns, [size, size], antialias=True)
        torch.testing.assert_close(crop, theirs, atol=1e-5, rtol=1e-5)


def test_random_resized_crop__covers_the_areas_and_shapes_asked_for():
    ramp = torch.arange(64).float()
    images = torch.stack(torch.meshgrid(ramp, ramp, indexing="ij")).expand(500, -1, -1, -1)
    crops = random_resized_crop(images, 32, (0.25, 0.5), torch.Generator().manual_seed(0))
    # The middle rows of the result are half of a crop apart, and antialiasing keeps a ramp there.
    rows = 2 * (crops[:, 0, 24, 16] - crops[:, 0, 8, 16])
    columns = 2 * (crops[:, 1, 16, 24] - crops[:, 1, 16, 8])
    area, aspect = rows * columns / 64**2, columns / rows
    assert 0.23 < area.min() < 0.27 < 0.48 < area.max() < 0.53
    assert 0.72 < aspect.min() < 0.78 < 1.28 < aspect.max() < 1.39
    assert area.mean().item() == pytest.approx(0.375, abs=0.01)
    assert aspect.log().mean().item() == pytest.approx(0, abs=0.03)
    middle = crops[:, :, 15:17, 15:17].mean(dim=(2, 3))
    torch.testing.assert_close(middle.mean(dim=0), torch.full((2,), 31.5), atol=1, rtol=0)


@pytest.mark.parametrize("scale", [(0, 1), (0.5, 0.2), (0.5, 1.1)])
def test_random_resized_crop__impossible_areas_are_refused(images, scale):
    with pytest.raises(ValueError, match="crop_scale"):
        random_resized_crop(images, 4, scale)


@pytest.mark.parametrize("world_size", [2, 3])
@pytest.mark.parametrize(
    "augment",
    [
        lambda images, **options: random_crop(images, 2, **options),
        lambda images, **options: random_resized_crop(images, 5, (0.2, 1.0), **options),
        lambda images, **options: random_flip(images, **options)[0],
    ],
)
def test_shards__have_the_draws_of_the_whole_batch(images, augment, world_size):
    whole = augment(images, generator=torch.Generator().manual_seed(1))
    for rank in range(world_size):
        generator = torch.Generator().manual_seed(1)
        part = augment(images[rank::world_size], generator=generator, shard=(rank, world_size))
        assert torch.equal(part, whole[rank::world_size])
