"""A value with the gradient of another."""

from typing import Any

import torch
from torch import Tensor


def straight_through(images: Tensor, replaced: Tensor) -> Tensor:
    """`replaced` on the way forward, `images` on the way back (Bengio et al. 2013; BPDA, Athalye et al. 2018).

    Unlike `images + (replaced - images).detach()` it returns `replaced` bit for bit.

    Args:
        images: What the gradient goes to.
        replaced: The value, the same shape.

    Returns:
        A copy of `replaced` whose gradient is passed on to `images` as it is.
    """
    result: Tensor = _Replace.apply(images, replaced)
    return result


def within_range(means: Tensor) -> Tensor:
    """Weighted means of pixels, which leave [0, 1] by rounding only, brought back with their gradient.

    Args:
        means: Any shape.
    """
    return straight_through(means, means.detach().clamp(0, 1))


class _Replace(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, images: Tensor, replaced: Tensor) -> Tensor:
        return replaced.clone()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return gradients[0], None
