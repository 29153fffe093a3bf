"""Images to patches and back, and the position table of the patches."""

import torch
from torch import Tensor


def patchify(images: Tensor, patch_size: int) -> Tensor:
    """Cut images into flattened patches, row by row.

    Args:
        images: `(B, C, H, W)`, H and W multiples of `patch_size`.
        patch_size: Side of a patch in pixels.

    Returns:
        `(B, L, patch_size**2 * C)` with L = H/p * W/p; inside a patch the channel varies fastest, as in
        https://github.com/facebookresearch/mae.

    Raises:
        ValueError: If the patch does not divide the image.
    """
    b, c, h, w = images.shape
    p = patch_size
    if h % p or w % p:
        raise ValueError(
            f"Images of {h}x{w} pixels cannot be cut into patches of {p}x{p}: the patch must divide both sides."
        )
    x = images.reshape(b, c, h // p, p, w // p, p)
    return x.permute(0, 2, 4, 3, 5, 1).reshape(b, (h // p) * (w // p), p * p * c)


def unpatchify(patches: Tensor, patch_size: int, grid: tuple[int, int]) -> Tensor:
    """The inverse of `patchify`.

    Args:
        patches: `(B, L, patch_size**2 * C)`.
        patch_size: Side of a patch in pixels.
        grid: Patches per column and per row, `(H/p, W/p)`, with product L.

    Returns:
        `(B, C, H, W)`.

    Raises:
        ValueError: If the grid does not have L cells.
    """
    b, length, dim = patches.shape
    rows, cols = grid
    if rows * cols != length:
        raise ValueError(f"A grid of {rows}x{cols} has {rows * cols} patches, but {length} were given.")
    p = patch_size
    c = dim // (p * p)
    x = patches.reshape(b, rows, cols, p, p, c)
    return x.permute(0, 5, 1, 3, 2, 4).reshape(b, c, rows * p, cols * p)


def sincos_position_table(width: int, grid: tuple[int, int], span: int | None = None) -> Tensor:
    """Fixed two-dimensional sine-cosine position embedding.

    The first half of the channels encodes the column, the second half the row, each as sines then cosines of
    frequencies 10000^(-2i/D), which is the table of https://github.com/facebookresearch/mae; being a formula, it
    exists for every grid, so that a network trained at one resolution runs at another.

    Args:
        width: Channels D, a multiple of 4.
        grid: Patches per column and per row.
        span: The grid covers the coordinates 0 to `span - 1` in each direction, those of a grid of `span` patches;
            its own, one a patch, if None.

    Returns:
        `(L, D)` float32.

    Raises:
        ValueError: If `width` is not a multiple of 4.
    """
    if width % 4:
        raise ValueError(f"The sine-cosine position table needs a width that is a multiple of 4, not {width}.")
    rows, cols = grid
    omega = 10000.0 ** -(torch.arange(width // 4, dtype=torch.float64) / (width // 4))
    sides = [torch.linspace(0, (span or side) - 1, side, dtype=torch.float64) for side in (rows, cols)]
    row, col = torch.meshgrid(*sides, indexing="ij")
    angles = [position.reshape(-1, 1) * omega for position in (col, row)]
    return torch.cat([f(a) for a in angles for f in (torch.sin, torch.cos)], dim=1).float()
