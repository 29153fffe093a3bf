"""Images as they are stored and as networks take them."""

import torch
from torch import Tensor


def unit_range(images: Tensor) -> Tensor:
    """Images in [0, 1].

    Args:
        images: Of any shape, uint8 from 0 to 255 or floating point.

    Returns:
        uint8 as float32 in [0, 1]; floating point as it is.
    """
    return images.float() / 255 if images.dtype == torch.uint8 else images
