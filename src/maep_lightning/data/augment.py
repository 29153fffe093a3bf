"""Crops of a batch on its device, drawn anew for each image.

`torchvision.transforms.v2` applied to a batch draws one set of parameters for all of it, so it is not used here.
"""

import torch
from torch import Tensor


def random_crop(images: Tensor, padding: int, generator: torch.Generator | None = None) -> Tensor:
    """Crop each image at its own place after padding by reflection, keeping its size.

    Args:
        images: `(B, C, H, W)`, any dtype and range.
        padding: Pixels reflected on every side; less than H and W.
        generator: Source of chance, on the device of `images`; the global one if None.

    Returns:
        `(B, C, H, W)`.

    Raises:
        ValueError: If the padding is not smaller than the image.
    """
    batch, channels, height, width = images.shape
    if not 0 <= padding < min(height, width):
        raise ValueError(f"padding must be at least 0 and less than the image size {height}x{width}, not {padding}.")
    device = images.device
    shift = torch.randint(-padding, padding + 1, (2, batch, 1), device=device, generator=generator)
    rows = _reflect(shift[0] + torch.arange(height, device=device), height).view(batch, 1, height, 1)
    columns = _reflect(shift[1] + torch.arange(width, device=device), width).view(batch, 1, 1, width)
    sample = torch.arange(batch, device=device).view(-1, 1, 1, 1)
    channel = torch.arange(channels, device=device).view(1, -1, 1, 1)
    return images[sample, channel, rows, columns]


def _reflect(index: Tensor, size: int) -> Tensor:
    index = index.abs()
    return torch.where(index >= size, 2 * (size - 1) - index, index)
