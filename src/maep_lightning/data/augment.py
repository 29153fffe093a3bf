"""Crops of a batch on its device, drawn anew for each image.

`torchvision.transforms.v2` applied to a batch draws one set of parameters for all of it, so it is not used here.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

# That of Inception and of masked autoencoders (He et al. 2022).
_LEAST_ASPECT, _LARGEST_ASPECT = 3 / 4, 4 / 3


def random_crop(
    images: Tensor, padding: int, generator: torch.Generator | None = None, shard: tuple[int, int] = (0, 1)
) -> Tensor:
    """Crop each image at its own place after padding by reflection, keeping its size.

    Args:
        images: `(B, C, H, W)`, any dtype and range.
        padding: Pixels reflected on every side; less than H and W.
        generator: Source of chance, on the device of `images`; the global one if None.
        shard: Rank and number of the processes that share a batch; see `random_flip`.

    Returns:
        `(B, C, H, W)`.

    Raises:
        ValueError: If the padding is not smaller than the image.
    """
    batch, channels, height, width = images.shape
    if not 0 <= padding < min(height, width):
        raise ValueError(f"padding must be at least 0 and less than the image size {height}x{width}, not {padding}.")
    device = images.device
    rank, world_size = shard
    shift = torch.randint(-padding, padding + 1, (2, batch * world_size, 1), device=device, generator=generator)
    shift = shift[:, rank::world_size]
    rows = _reflect(shift[0] + torch.arange(height, device=device), height).view(batch, 1, height, 1)
    columns = _reflect(shift[1] + torch.arange(width, device=device), width).view(batch, 1, 1, width)
    sample = torch.arange(batch, device=device).view(-1, 1, 1, 1)
    channel = torch.arange(channels, device=device).view(1, -1, 1, 1)
    return images[sample, channel, rows, columns]


def _reflect(index: Tensor, size: int) -> Tensor:
    index = index.abs()
    return torch.where(index >= size, 2 * (size - 1) - index, index)


def check_crop_scale(scale: Sequence[float]) -> None:
    """Refuse what no training crop can take.

    Raises:
        ValueError: If `scale` is not two shares in order, above 0 and at most 1.
    """
    if len(scale) != 2 or not 0 < scale[0] <= scale[1] <= 1:
        raise ValueError(f"crop_scale must be two shares of the area in order, above 0 and at most 1, not {scale}.")


def random_resized_crop(
    images: Tensor,
    size: int,
    scale: tuple[float, float],
    generator: torch.Generator | None = None,
    shard: tuple[int, int] = (0, 1),
) -> Tensor:
    """Cut a rectangle out of each image, at its own place and of its own size and shape, and resize it to a square.

    Areas are uniform in `scale`, aspect ratios log-uniform from 3/4 to 4/3, as in torchvision's `RandomResizedCrop`; a
    side that would be longer than the image is cut to it, where torchvision draws again.

    Args:
        images: `(B, C, H, W)`, any dtype and range.
        size: Height and width of the result.
        scale: Least and largest share of an image's area.
        generator: Source of chance, on the device of `images`; the global one if None.
        shard: Rank and number of the processes that share a batch; see `random_flip`.

    Returns:
        `(B, C, size, size)` float32, in the range of `images`.

    Raises:
        ValueError: If `scale` is not two shares in order, above 0 and at most 1.
    """
    check_crop_scale(scale)
    batch, _, height, width = images.shape
    rank, world_size = shard
    draws = torch.rand(4, batch * world_size, device=images.device, generator=generator)[:, rank::world_size]
    area = height * width * (scale[0] + (scale[1] - scale[0]) * draws[0])
    stretch = math.log(_LEAST_ASPECT) + (math.log(_LARGEST_ASPECT) - math.log(_LEAST_ASPECT)) * draws[1]
    rows = (area / stretch.exp()).sqrt().round().clamp(1, height)
    columns = (area * stretch.exp()).sqrt().round().clamp(1, width)
    top, left = (draws[2] * (height - rows + 1)).floor(), (draws[3] * (width - columns + 1)).floor()
    return resized_crop(images, top, left, rows, columns, size)


def resized_crop(images: Tensor, top: Tensor, left: Tensor, rows: Tensor, columns: Tensor, size: int) -> Tensor:
    """Resize a rectangle of each image to a square, bilinearly with antialiasing.

    Args:
        images: `(B, C, H, W)`, any dtype and range.
        top: `(B,)`, first row of each rectangle.
        left: `(B,)`, first column.
        rows: `(B,)`, number of rows, at least 1.
        columns: `(B,)`, number of columns, at least 1.
        size: Height and width of the result.

    Returns:
        `(B, C, size, size)` float32, in the range of `images`.
    """
    height, width = images.shape[-2:]
    vertical = _resampling(top, rows, height, size).unsqueeze(1)
    horizontal = _resampling(left, columns, width, size).unsqueeze(1)
    return vertical @ images.float() @ horizontal.mT


def _resampling(start: Tensor, length: Tensor, source: int, size: int) -> Tensor:
    """Weights `(B, size, source)` of the triangle filter that torch's antialiased bilinear interpolation uses."""
    start, length = start.float().view(-1, 1, 1), length.float().view(-1, 1, 1)
    ratio = length / size
    centre = (torch.arange(size, device=start.device).view(1, -1, 1) + 0.5) * ratio
    position = torch.arange(source, device=start.device).view(1, 1, -1) - start
    weights = (1 - (position + 0.5 - centre).abs() / ratio.clamp(min=1)).clamp(min=0)
    weights = weights * ((position >= 0) & (position < length))
    return weights / weights.sum(dim=-1, keepdim=True)
