import pytest
import torch

from maep_lightning.functional.collages import collage_count, collages


def numbered(count, size=8):
    """`(count, 3, size, size)`: image i is i everywhere."""
    return torch.arange(float(count)).view(-1, 1, 1, 1).expand(-1, 3, size, size).contiguous()


@pytest.mark.parametrize(("images", "grids", "expected"), [(80, [1, 2, 4], 5), (17, [4, 2], 1), (9, [2], 2)])
def test_collages__show_images_once_and_whole_as_many_as_fill_the_largest_grid(images, grids, expected):
    assert collage_count(8, 16, grids, images) == expected
    drawn = set()
    for seed in range(20):
        pictures = collages(numbered(images), 16, grids, torch.Generator().manual_seed(seed))
        assert pictures.shape == (expected, 3, 16, 16)
        shown, pixels = pictures.round().unique(return_counts=True)
        torch.testing.assert_close(pictures, pictures.round())
        assert set(pixels.tolist()) == {3 * 16 * 16 * expected // len(shown)}
        drawn.add(len(shown))
    assert drawn == {expected * g * g for g in grids}


def test_collages__repeat_with_the_generator():
    images = torch.rand(9, 3, 8, 8)
    first, second = (collages(images, 24, [1, 2, 3], torch.Generator().manual_seed(1)) for _ in "ab")
    assert torch.equal(first, second)


def test_collages__at_the_images_own_size_are_the_images():
    images = torch.rand(4, 3, 8, 8)
    found = collages(images, 8, [1], torch.Generator().manual_seed(0))
    assert torch.equal(found, images[torch.randperm(4, generator=_after_one_draw(0))])


def _after_one_draw(seed):
    generator = torch.Generator().manual_seed(seed)
    torch.randint(1, (), generator=generator)
    return generator


@pytest.mark.parametrize(
    ("images", "grids", "message"),
    [
        (48, [4, 7], "48 images do not fill a collage of 7 x 7: it takes a batch of 49"),
        (49, [4, 5], "224 pixels cannot have 5 rows and columns: the grids must divide 224 evenly, such as 7,"),
        (49, [0], "224 pixels cannot have 0 rows and columns"),
        (49, [], r"grids = \[\] leaves no number"),
    ],
)
def test_collages__say_what_they_take(images, grids, message):
    with pytest.raises(ValueError, match=message):
        collages(torch.rand(images, 3, 32, 32), 224, grids)
