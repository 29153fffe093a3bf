"""Augmentation that treats several images of one scene alike."""

import torch
from torch import Tensor


def random_flip(*images: Tensor, generator: torch.Generator | None = None) -> tuple[Tensor, ...]:
    """Mirror each sample with probability one half, all given versions of a sample together.

    Args:
        images: Tensors `(B, C, H, W)` of one shape and device.
        generator: Source of the randomness, on their device; the global one if None.

    Returns:
        The tensors in the order given.
    """
    first = images[0]
    flip = torch.rand(first.shape[0], 1, 1, 1, device=first.device, generator=generator) < 0.5
    return tuple(torch.where(flip, x.flip(-1), x) for x in images)
