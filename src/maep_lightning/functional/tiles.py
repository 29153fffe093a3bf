"""Images to overlapping square tiles and back, padding by reflection, and a measure of the seams that tiles leave."""

import torch
import torch.nn.functional as F
from torch import Tensor


def padded_side(side: int, size: int, stride: int) -> int:
    """The smallest side, at least `side`, that tiles of `size` laid every `stride` pixels cover exactly."""
    return size + max(0, -(-(side - size) // stride)) * stride


def reflect_pad(images: Tensor, height: int, width: int) -> Tensor:
    """Enlarge images by mirroring them at their borders, evenly on both sides, as often as it takes.

    Args:
        images: `(B, C, H, W)`.
        height: New height, at least H.
        width: New width, at least W.

    Returns:
        `(B, C, height, width)`; `center_crop` takes the images out of it again.
    """
    for dim, target in ((-2, height), (-1, width)):
        side = images.shape[dim]
        if target == side:
            continue
        # Not F.pad: its backward pass on a GPU adds up in no fixed order, and attacks must repeat to the bit.
        period = torch.cat([images, images.narrow(dim, 1, max(side - 2, 0)).flip(dim)], dim=dim)
        start = -((target - side) // 2) % period.shape[dim]
        copies = -(-(start + target) // period.shape[dim])
        images = torch.cat([period] * copies, dim=dim).narrow(dim, start, target)
    return images


def center_crop(images: Tensor, height: int, width: int) -> Tensor:
    """The part of `(B, C, H, W)` that `reflect_pad` enlarged, `(B, C, height, width)`."""
    top, left = (images.shape[-2] - height) // 2, (images.shape[-1] - width) // 2
    return images[..., top : top + height, left : left + width]


def cut_tiles(images: Tensor, size: int, stride: int) -> Tensor:
    """Cut images into square tiles.

    Args:
        images: `(B, C, H, W)`, whose sides `padded_side` leaves as they are.
        size: Side of a tile in pixels.
        stride: Pixels from one tile to the next; `size` for tiles side by side.

    Returns:
        `(B * L, C, size, size)`, image by image and row by row.
    """
    b, c, h, w = images.shape
    if stride == size:  # no pixel is in two tiles: one copy, several times faster than unfold
        tiles = images.reshape(b, c, h // size, size, w // size, size).permute(0, 2, 4, 1, 3, 5)
        return tiles.reshape(-1, c, size, size).contiguous()
    return F.unfold(images, size, stride=stride).transpose(1, 2).reshape(-1, c, size, size)


def join_tiles(tiles: Tensor, height: int, width: int, stride: int) -> Tensor:
    """Put the tiles of `cut_tiles` back where they were; where they overlap, they add up.

    Args:
        tiles: `(B * L, C, size, size)`.
        height: Of the images.
        width: Of the images.
        stride: As in `cut_tiles`.

    Returns:
        `(B, C, height, width)`.
    """
    c, size = tiles.shape[1], tiles.shape[-1]
    rows, columns = (height - size) // stride + 1, (width - size) // stride + 1
    if stride == size:
        images = tiles.reshape(-1, rows, columns, c, size, size).permute(0, 3, 1, 4, 2, 5)
        return images.reshape(-1, c, height, width).contiguous()
    pixels = tiles.reshape(-1, rows * columns, c * size * size).transpose(1, 2)
    return F.fold(pixels, (height, width), size, stride=stride)


def hann_window(size: int) -> Tensor:
    """Weights `(size, size)` of a tile's pixels, `sin^2` in each direction: 1 in the middle, small at the borders.

    The samples lie half a pixel off the zeros, so every weight is positive, and tiles laid every half tile have
    weights that sum to 1 wherever four of them meet.
    """
    side = torch.sin(torch.pi * (torch.arange(size, dtype=torch.float64) + 0.5) / size) ** 2
    return (side[:, None] * side[None, :]).float()


def seam_ratio(purified: Tensor, images: Tensor, period: int, patch: int = 1) -> Tensor:
    """How much rougher the purifier's correction is across tile borders than elsewhere.

    The mean absolute difference of neighbouring pixels of `purified - images` over the pairs astride a multiple of
    `period`, divided by the mean over the pairs astride another multiple of `patch`. It is of the correction because an
    image has edges of its own, and between patches because these leave a lattice of their own, at any policy. 1 means
    that tile borders cannot be told from patch borders; a purifier that changes nothing gives NaN.

    Args:
        purified: `(B, C, H, W)`.
        images: What was purified, the same shape.
        period: Pixels from one tile border to the next, counted from the upper left corner.
        patch: Side in pixels of the purifier's patches, a divisor of `period` and less than it.

    Returns:
        A scalar.
    """
    correction = (purified - images).detach()
    tiles, patches = [], []
    for dim in (-2, -1):
        jumps = correction.diff(dim=dim).abs().movedim(dim, 0).flatten(1)
        position = torch.arange(1, len(jumps) + 1, device=jumps.device)
        tiles.append(jumps[position % period == 0].flatten())
        patches.append(jumps[(position % period != 0) & (position % patch == 0)].flatten())
    return torch.cat(tiles).mean() / torch.cat(patches).mean()
