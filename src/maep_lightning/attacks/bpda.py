"""Attacking through a purifier whose gradient is withheld, by taking it for the identity on the way back."""

import torch
from torch import Tensor, nn

from maep_lightning.functional.straight_through import straight_through


class StraightThrough(nn.Module):
    """A purifier whose output is exact and whose gradient is that of the identity (BPDA, Athalye et al. 2018).

    Args:
        purifier: Images `(B, C, H, W)` in [0, 1] to images of the same shape, or to V versions of each,
            `(B, V, C, H, W)`, each of which then has the identity's gradient.
    """

    def __init__(self, purifier: nn.Module) -> None:
        super().__init__()
        self.purifier = purifier
        self.train(purifier.training)

    def forward(self, images: Tensor) -> Tensor:
        """Purify.

        Args:
            images: `(B, C, H, W)` in [0, 1].

        Returns:
            What the purifier returns.

        Raises:
            ValueError: If the purifier changes the shape, so that the identity is no approximation of it.
        """
        with torch.no_grad():
            purified: Tensor = self.purifier(images)
        if purified.ndim == images.ndim + 1:
            images = images[:, None].expand(-1, purified.shape[1], *images.shape[1:])
        if purified.shape != images.shape:
            raise ValueError(
                f"BPDA with the identity needs a purifier that keeps the shape; {tuple(images.shape)} became"
                f" {tuple(purified.shape)}. Leave out the bpda threat."
            )
        return straight_through(images, purified)
