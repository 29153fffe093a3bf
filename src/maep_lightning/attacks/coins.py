"""A stochastic network whose coins are fixed: a deterministic function of the image."""

from typing import Protocol, cast

import torch
from torch import Tensor, nn

from maep_lightning.attacks.target import isolated_rng


class Freezable(Protocol):
    """A network that can fix its own random numbers, for a whole batch at once."""

    def frozen(self, seed: int) -> nn.Module:
        """The same with its random numbers fixed, the same for every image and every call."""
        ...


class FixedCoins(nn.Module):
    """A network that sees each image alone, with the same random numbers.

    Args:
        network: Draws from torch's global generator.
        seed: Of the random numbers.
    """

    def __init__(self, network: nn.Module, seed: int) -> None:
        super().__init__()
        self.network = network
        self.seed = seed
        self.train(network.training)

    def forward(self, images: Tensor) -> Tensor:
        """Apply the network to `(B, ...)`, one row after the other."""
        rows = []
        for row in range(len(images)):
            with isolated_rng(self.seed, images.device):
                rows.append(self.network(images[row : row + 1]))
        return torch.cat(rows)


def fix_coins(network: nn.Module, seed: int) -> nn.Module:
    """Fix the random numbers of a network: its own way where it has one, else image by image.

    Args:
        network: A stochastic network; if it has a method `frozen(seed)`, that is taken.
        seed: Of the random numbers.
    """
    if hasattr(network, "frozen"):
        return cast(Freezable, network).frozen(seed)
    return FixedCoins(network, seed)
