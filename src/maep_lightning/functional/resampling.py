"""Images to another size by two matrix products.

On a GPU the backward pass of torch's interpolation adds in any order, and an attack has to find the same image again.
"""

import torch
import torch.nn.functional as F
from torch import Tensor


def resample(images: Tensor, height: int, width: int, antialias: bool = True) -> Tensor:
    """Bring images to a size, bilinearly and in their own type, as `torch.nn.functional.interpolate` does.

    Args:
        images: `(B, C, H, W)`.
        height: New height.
        width: New width.
        antialias: Whether all old pixels count that a new one covers, where the image shrinks.

    Returns:
        `(B, C, height, width)`.
    """
    h, w = images.shape[-2:]
    with torch.autocast(images.device.type, enabled=False):
        return _weights(h, height, antialias, images).mT @ images @ _weights(w, width, antialias, images)


def _weights(side: int, new: int, antialias: bool, like: Tensor) -> Tensor:
    """`(side, new)`: what each old pixel of a line gives to each new one."""
    eye = torch.eye(side, device=like.device, dtype=torch.promote_types(like.dtype, torch.float32))
    return F.interpolate(eye[None, None], (side, new), mode="bilinear", antialias=antialias)[0, 0].to(like.dtype)
