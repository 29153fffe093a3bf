"""Augmentation that treats several images of one scene alike."""

import torch
from torch import Tensor


def random_flip(
    *images: Tensor, generator: torch.Generator | None = None, shard: tuple[int, int] = (0, 1)
) -> tuple[Tensor, ...]:
    """Mirror each sample with probability one half, all given versions of a sample together.

    Args:
        images: Tensors `(B, C, H, W)` of one shape and device.
        generator: Source of the randomness, on their device; the global one if None.
        shard: Rank and number W of the processes that share a batch: draws are those of a batch of W * B, of which
            these samples are every W-th, so that an equally seeded generator gives a sample the same draw for any W.

    Returns:
        The tensors in the order given.
    """
    first = images[0]
    rank, world_size = shard
    draws = torch.rand(first.shape[0] * world_size, 1, 1, 1, device=first.device, generator=generator)
    flip = draws[rank::world_size] < 0.5
    return tuple(torch.where(flip, x.flip(-1), x) for x in images)
