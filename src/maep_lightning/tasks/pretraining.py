"""Stage 1: masked-autoencoder pre-training."""

import math
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from maep_lightning.models.purifier import Purifier
from maep_lightning.tasks.base import Optimization, Task
from maep_lightning.tasks.start import start_purifier

# So many masks serve all validation images, each image always the same one.
_VALIDATION_MASKS = 1024


class MAEPretraining(Task):
    """Reconstruction of removed patches (He et al. 2022; MAEP Eq. (1)), on clean images, no labels.

    Args:
        shape: Name of the architecture, a key of `maep_lightning.models.shapes.SHAPES`; a purifier's file knows its
            own.
        overrides: Fields of the shape to replace, such as `{refine_depth: 0}`.
        mask_ratio: Share of removed patches; the paper trains at 0.5.
        norm_pix: Whether target patches are standardised one by one. Such a network predicts no pixels, so it must
            stay false for a purifier.
        weights: File to start from: a purifier's, or a masked autoencoder in the format of facebookresearch/mae, of
            which the encoder, and the decoder if it is there and fits, are taken. None starts from scratch.
        optimization: The optimiser's settings.

    Raises:
        ValueError: If the mask ratio is out of range, or the purifier is no masked autoencoder.
    """

    needs_labels = False

    def __init__(
        self,
        shape: str = "maep_conv_patch4_32",
        overrides: dict[str, Any] | None = None,
        mask_ratio: float = 0.5,
        norm_pix: bool = False,
        weights: str | None = None,
        optimization: Optimization | None = None,
    ) -> None:
        super().__init__(optimization)
        if not 0 < mask_ratio < 1:
            raise ValueError(
                f"Pre-training learns from removed patches: mask_ratio must be in (0, 1), not {mask_ratio}."
            )
        self.save_hyperparameters(ignore=["optimization"])
        self.mask_ratio = mask_ratio
        self.norm_pix = norm_pix
        purifier = start_purifier(weights, shape, overrides)
        if not isinstance(purifier, Purifier):
            raise ValueError(f"Masked pre-training is for masked autoencoders; this is {purifier.architecture}.")
        self.purifier = purifier

    def trained(self) -> nn.Module:
        """The masked autoencoder."""
        return self.purifier

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        """Masked reconstruction loss of clean images; a refinement is left for the next stage."""
        images = batch[0]
        loss = self.loss(images, self.shared_noise(len(images), self.patches(images)))
        self.log("train/loss", loss, prog_bar=True, sync_dist=True)
        return loss

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        """The same loss on held-out images; an image's mask depends on its place in the set alone."""
        images, _, places = batch
        generator = torch.Generator(images.device).manual_seed(0)
        noise = torch.rand(_VALIDATION_MASKS, self.patches(images), device=images.device, generator=generator)
        self.log_mean("val/loss", self.loss(images, noise[places % _VALIDATION_MASKS]), len(images))

    def patches(self, images: Tensor) -> int:
        """Number of patches L of each of `images` `(B, 3, H, W)`."""
        return math.prod(self.purifier.mae.grid(images))

    def loss(self, images: Tensor, noise: Tensor | None = None) -> Tensor:
        """The MAE loss.

        Args:
            images: `(B, 3, H, W)` in [0, 1].
            noise: `(B, L)`; the patches with the smallest values are kept. Drawn anew if None.

        Returns:
            A scalar.
        """
        output = self.purifier.mae(images, self.mask_ratio, noise=noise)
        return self.purifier.mae.reconstruction_loss(images, output, self.norm_pix)

    def export(self, path: Path, provenance: dict[str, Any]) -> None:
        """Write the purifier."""
        self.purifier.save_pretrained(path, provenance)
