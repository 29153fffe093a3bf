"""Small layers that several networks share."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn


class Normalize(nn.Module):
    """Per-channel standardisation of images in [0, 1]: the first layer of every network here.

    Args:
        mean: One number a channel.
        std: One number a channel.
    """

    def __init__(self, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        self.mean: Tensor
        self.std: Tensor
        self.register_buffer("mean", torch.tensor(mean).view(1, -1, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(1, -1, 1, 1), persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        """Standardise `(B, C, H, W)` in [0, 1]."""
        return (images - self.mean) / self.std

    def inverse(self, images: Tensor) -> Tensor:
        """Undo `forward`."""
        return images * self.std + self.mean


class Refinement(nn.Module):
    """A light convolutional network on (ViT image, visible pixels) that returns a correction, at first zero.

    It works on 2x2 pixel-unshuffled maps, which makes the same receptive field four times cheaper.

    Args:
        width: Channels.
        depth: Number of convolutions, at least 2.
    """

    def __init__(self, width: int, depth: int) -> None:
        super().__init__()
        layers: list[nn.Module] = [nn.PixelUnshuffle(2), nn.Conv2d(24, width, 3, padding=1), nn.ReLU()]
        for _ in range(depth - 2):
            layers += [nn.Conv2d(width, width, 3, padding=1), nn.ReLU()]
        last = nn.Conv2d(width, 12, 3, padding=1)
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)  # type: ignore[arg-type]
        self.layers = nn.Sequential(*layers, last, nn.PixelShuffle(2))

    def forward(self, images: Tensor) -> Tensor:
        """`(B, 6, H, W)` to `(B, 3, H, W)`, in the normalised space."""
        return self.layers(images)  # type: ignore[no-any-return]
