import pytest
import torch

from maep_lightning.functional.patches import patchify, sincos_position_table, unpatchify


def test_patchify__cuts_row_by_row_with_the_channel_fastest():
    image = torch.arange(2 * 3 * 4 * 6.0).reshape(2, 3, 4, 6)
    patches = patchify(image, 2)
    assert patches.shape == (2, 6, 12)
    for sample in range(2):
        for row in range(2):
            for col in range(3):
                block = image[sample, :, 2 * row : 2 * row + 2, 2 * col : 2 * col + 2]
                assert torch.equal(patches[sample, 3 * row + col], block.permute(1, 2, 0).flatten())


@pytest.mark.parametrize(("size", "patch"), [((32, 32), 4), ((8, 24), 2), ((7, 7), 7)])
def test_unpatchify__undoes_patchify(size, patch):
    images = torch.rand(3, 3, *size)
    assert torch.equal(unpatchify(patchify(images, patch), patch, (size[0] // patch, size[1] // patch)), images)


def test_patchify__says_which_sizes_do_not_fit():
    with pytest.raises(ValueError, match="33x32 pixels cannot be cut into patches of 4x4"):
        patchify(torch.rand(1, 3, 33, 32), 4)


def test_unpatchify__refuses_a_grid_of_another_size():
    with pytest.raises(ValueError, match="5 patches, but 4 were given"):
        unpatchify(torch.rand(1, 4, 12), 2, (1, 5))


def test_position_table__is_the_published_formula():
    # Vaswani et al. 2017 on each axis: sin(p w_i), cos(p w_i), w_i = 10000^(-i / (D/4)); columns first, then rows.
    table = sincos_position_table(8, (2, 3)).double()
    for row in range(2):
        for col in range(3):
            expected = []
            for p in (col, row):
                angles = torch.tensor([p * 1.0, p * 10000.0**-0.5], dtype=torch.float64)
                expected += [angles.sin(), angles.cos()]
            torch.testing.assert_close(table[3 * row + col], torch.cat(expected), atol=1e-6, rtol=0)


def test_position_table__refuses_widths_it_cannot_split():
    with pytest.raises(ValueError, match="multiple of 4, not 6"):
        sincos_position_table(6, (2, 2))
