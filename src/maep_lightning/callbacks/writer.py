"""Purified images as files."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import BasePredictionWriter
from PIL import Image
from torch import Tensor


class PurifiedImageWriter(BasePredictionWriter):
    """Writes what `predict` purifies as PNG files, with the names and sub-folders of the originals.

    Predict batches are images and their paths, as those of `ImageDataModule`; predictions are purified images
    `(B, 3, H, W)` in [0, 1]. Values are rounded to 8 bits.

    Args:
        output_dir: Where the files go; must not be the folder that is read. Files of the same name are replaced.
    """

    def __init__(self, output_dir: str = "runs/purified") -> None:
        super().__init__(write_interval="batch")
        self.output_dir = Path(output_dir)
        self.written = 0

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Refuse an output folder that would replace originals, and names that would collide.

        Raises:
            ValueError: In both cases.
        """
        self.root = Path(trainer.datamodule.predict_folder)  # type: ignore[attr-defined]
        self.written = 0
        if self.output_dir.resolve() == self.root.resolve():
            raise ValueError(f"output_dir and predict_folder are both {self.root}; the originals would be replaced.")
        paths = trainer.predict_dataloaders.dataset.paths  # type: ignore[union-attr]
        twice = [target for target, n in Counter(map(self.target, paths)).items() if n > 1]
        if twice:
            raise ValueError(f"Several images of {self.root} would become {twice[0]}: rename all but one.")

    def target(self, path: str | Path) -> Path:
        """Where the purified version of the image at `path` goes."""
        return self.output_dir / Path(path).relative_to(self.root).with_suffix(".png")

    def write_on_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        prediction: Any,
        batch_indices: Sequence[int] | None,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int,
    ) -> None:
        """Write one batch of purified images."""
        pixels: Tensor = prediction.detach().float().clamp(0, 1).mul(255).round().to(torch.uint8)
        for image, path in zip(pixels.permute(0, 2, 3, 1).cpu(), batch[1], strict=True):
            target = self.target(path)
            target.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image.numpy()).save(target)
            self.written += 1

    def on_predict_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Say where the images lie."""
        print(f"{self.written} purified images in {self.output_dir}")
