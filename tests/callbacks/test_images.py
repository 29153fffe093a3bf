import pytest
import torch

from maep_lightning.callbacks.images import purification_grid


@pytest.fixture
def images():
    generator = torch.Generator().manual_seed(0)
    return [torch.rand(5, 3, 6, 4, generator=generator) for _ in range(3)]


def tile(grid, row, column):
    return grid[:, row * 8 + 1 : row * 8 + 7, column * 6 + 1 : column * 6 + 5]


def test_rows_are_clean_attacked_purified_and_error(images):
    clean, attacked, purified = images
    grid = purification_grid(clean, attacked, purified)
    assert grid.shape == (3, 4 * 8, 5 * 6)
    for column in range(5):
        assert torch.equal(tile(grid, 0, column), clean[column])
        assert torch.equal(tile(grid, 1, column), attacked[column])
        assert torch.equal(tile(grid, 2, column), purified[column])


def test_error_is_ten_times_the_distance_to_the_clean_image(images):
    clean = images[0] * 0.5
    purified = clean + torch.tensor([0.01, -0.02, 0.3]).view(1, 3, 1, 1)
    error = tile(purification_grid(clean, clean, purified), 3, 2)
    for channel, expected in enumerate([0.1, 0.2, 1.0]):
        torch.testing.assert_close(error[channel], torch.full((6, 4), expected))


def test_perfect_purifier_leaves_a_black_row(images):
    clean, attacked, _ = images
    assert purification_grid(clean, attacked, clean)[:, 3 * 8 :].abs().max() == 0


def test_different_shapes_are_refused(images):
    with pytest.raises(ValueError, match=r"\(5, 3, 6, 4\), \(4, 3, 6, 4\)"):
        purification_grid(images[0], images[1][:4], images[2])
