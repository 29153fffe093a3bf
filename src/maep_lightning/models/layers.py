"""Small layers that several networks share."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from difflib import get_close_matches

import torch
import torch.nn.functional as F
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


class ResidualBlock(nn.Module):
    """Pre-activation residual block (He et al. 2016, "Identity mappings") that keeps its shape.

    Args:
        width: Channels.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.bn1, self.bn2 = nn.BatchNorm2d(width), nn.BatchNorm2d(width)
        self.conv1, self.conv2 = nn.Conv2d(width, width, 3, padding=1), nn.Conv2d(width, width, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """`(B, C, H, W)` to the same shape."""
        return x + self.conv2(F.relu(self.bn2(self.conv1(F.relu(self.bn1(x))))))  # type: ignore[no-any-return]


class DeepRefinement(nn.Module):
    """A residual network in the place of `Refinement`, with the capacity and the view that robust features need.

    One block at half the resolution, `depth` blocks of four times the width at a quarter of it, and back to pixels. The
    correction is at first zero.

    Args:
        width: Channels at half the resolution.
        depth: Residual blocks at a quarter of the resolution.
    """

    def __init__(self, width: int, depth: int) -> None:
        super().__init__()
        last = nn.Conv2d(4 * width, 48, 3, padding=1)
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)  # type: ignore[arg-type]
        self.layers = nn.Sequential(
            nn.PixelUnshuffle(2),
            nn.Conv2d(24, width, 3, padding=1),
            ResidualBlock(width),
            nn.Conv2d(width, 4 * width, 3, stride=2, padding=1),
            *(ResidualBlock(4 * width) for _ in range(depth)),
            nn.BatchNorm2d(4 * width),
            nn.ReLU(),
            last,
            nn.PixelShuffle(4),
        )

    def forward(self, images: Tensor) -> Tensor:
        """`(B, 6, H, W)`, sides multiples of 4, to `(B, 3, H, W)`, in the normalised space."""
        return self.layers(images)  # type: ignore[no-any-return]


@contextmanager
def outputs_of(network: nn.Module, names: Sequence[str]) -> Iterator[dict[str, Tensor]]:
    """What layers of a network return while it is run.

    Args:
        network: Any module whose layers are modules too, which those of a traced or exported program are not.
        names: The layers, as in `named_modules`.

    Yields:
        A dictionary that each run of the network fills anew: the output of each layer by its name.

    Raises:
        ValueError: If a layer does not exist, or while the network is run, if it returns something else than a tensor.
    """
    layers = dict(network.named_modules())
    for name in names:
        if name not in layers:
            nearest = get_close_matches(name, layers, n=3, cutoff=0.0)
            raise ValueError(f"The network has no layer {name!r}; did you mean {', '.join(nearest)}?")
    found: dict[str, Tensor] = {}

    def keep(name: str, output: object) -> None:
        if not isinstance(output, Tensor):
            raise ValueError(f"Layer {name!r} returns a {type(output).__name__}, not a tensor: name another one.")
        found[name] = output

    handles = [
        layers[name].register_forward_hook(lambda _, __, output, name=name: keep(name, output)) for name in names
    ]
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()
