import pytest
import torch
import torch.nn.functional as F

from maep_lightning.data.augment import random_crop


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
