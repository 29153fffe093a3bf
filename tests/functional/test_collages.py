import pytest
import torch

from maep_lightning.functional.collages import collages, grids


def numbered(count, size=8):
    """`(count, 3, size, size)`: image i is i everywhere."""
    return torch.arange(float(count)).view(-1, 1, 1, 1).expand(-1, 3, size, size).contiguous()


@pytest.mark.parametrize(
    ("size", "side", "images", "expected"),
    [(32, 224, 196, [1, 2, 4, 7]), (32, 224, 49, [1, 2, 4, 7]), (8, 24, 9, [1, 2, 3]), (8, 24, 11, [1, 2, 3])],
)
def test_grids__fill_the_side_and_never_shrink(size, side, images, expected):
    assert grids(size, side, images) == expected


@pytest.mark.parametrize("seed", range(8))
def test_collages__show_each_image_once_and_whole(seed):
    pictures = collages(numbered(20), 16, torch.Generator().manual_seed(seed))
    assert pictures.shape == (5, 3, 16, 16)
    shown, pixels = pictures.round().unique(return_counts=True)
    torch.testing.assert_close(pictures, pictures.round())
    assert len(shown) in (5, 20)  # one enlarged image each, or four
    assert set(pixels.tolist()) == {3 * 16 * 16 * 5 // len(shown)}


def test_collages__may_shrink_images_and_then_take_more_of_them():
    assert grids(32, 224, 784, shrink=2) == [1, 2, 4, 7, 8, 14]
    assert grids(32, 224, 196, shrink=2) == [1, 2, 4, 7, 8, 14]
    draws = [collages(numbered(80), 16, torch.Generator().manual_seed(seed), shrink=2) for seed in range(20)]
    assert {pictures.shape for pictures in draws} == {(5, 3, 16, 16)}
    assert {len(pictures.round().unique()) for pictures in draws} == {5, 20, 80}


def test_collages__draw_their_grid_and_repeat_with_the_generator():
    kinds = {len(collages(numbered(9), 24, torch.Generator().manual_seed(seed)).round().unique()) for seed in range(20)}
    assert kinds == {1, 4, 9}
    first, second = (collages(torch.rand(9, 3, 8, 8).fill_(0.5), 24, torch.Generator().manual_seed(1)) for _ in "ab")
    assert torch.equal(first, second)


def test_collages__at_the_images_own_size_are_the_images():
    images = torch.rand(4, 3, 8, 8)
    found = collages(images, 8, torch.Generator().manual_seed(0))
    assert torch.equal(found, images[torch.randperm(4, generator=_after_one_draw(0))])


def _after_one_draw(seed):
    generator = torch.Generator().manual_seed(seed)
    torch.randint(1, (), generator=generator)
    return generator


def test_collages__say_how_many_images_they_take():
    with pytest.raises(ValueError, match="48 images of 32 pixels do not fill a collage of 224: it takes a batch of 49"):
        collages(torch.rand(48, 3, 32, 32), 224)
    with pytest.raises(ValueError, match="A collage of 16 pixels is smaller than the images of 32"):
        collages(torch.rand(48, 3, 32, 32), 16)
    with pytest.raises(ValueError, match=r"195 images .* shrunk 2 times do not fill .* a batch of 196"):
        collages(torch.rand(195, 3, 32, 32), 224, shrink=2)
    with pytest.raises(ValueError, match="1 or more, not 0"):
        collages(torch.rand(49, 3, 32, 32), 224, shrink=0)
