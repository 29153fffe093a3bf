"""Stage 1: masked-autoencoder pre-training."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from maep_lightning.models.purifier import Purifier
from maep_lightning.models.shapes import create_mae
from maep_lightning.tasks.base import Optimization, Task


class MAEPretraining(Task):
    """Reconstruction of removed patches (He et al. 2022; MAEP Eq. (1)), on clean images, no labels.

    Args:
        shape: Name of the architecture, a key of `maep_lightning.models.shapes.SHAPES`.
        overrides: Fields of the shape to replace, such as `{refine_depth: 0}`.
        mask_ratio: Share of removed patches; the paper trains at 0.5.
        norm_pix: Whether target patches are standardised one by one. Such a network predicts no pixels, so it must
            stay false for a purifier.
        optimization: The optimiser's settings.
    """

    def __init__(
        self,
        shape: str = "maep_conv_patch4_32",
        overrides: dict[str, Any] | None = None,
        mask_ratio: float = 0.5,
        norm_pix: bool = False,
        optimization: Optimization | None = None,
    ) -> None:
        super().__init__(optimization)
        self.save_hyperparameters(ignore=["optimization"])
        self.mask_ratio = mask_ratio
        self.norm_pix = norm_pix
        self.purifier = Purifier(create_mae(shape, **(overrides or {})))

    def trained(self) -> nn.Module:
        """The masked autoencoder."""
        return self.purifier

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        """Masked reconstruction loss of clean images; a refinement is left for the next stage."""
        loss = self.loss(batch[0])
        self.log("train/loss", loss, prog_bar=True)
        return loss

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        """The same loss on held-out images, with masks that are the same at every epoch."""
        generator = torch.Generator(batch[0].device).manual_seed(batch_idx)
        self.log_mean("val/loss", self.loss(batch[0], generator), len(batch[0]))

    def loss(self, images: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """The MAE loss of `images` `(B, 3, H, W)` in [0, 1]."""
        output = self.purifier.mae(images, self.mask_ratio, generator)
        return self.purifier.mae.reconstruction_loss(images, output, self.norm_pix)

    def export(self, path: Path, provenance: dict[str, Any]) -> None:
        """Write the purifier."""
        self.purifier.save_pretrained(path, provenance)
