"""Pictures of what a purifier does, while it trains."""

from typing import Any

import torch
import torch.nn.functional as F
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.loggers import TensorBoardLogger
from torch import Tensor

from maep_lightning.callbacks.monitoring import PurifierMonitor, Watched


def purification_grid(clean: Tensor, attacked: Tensor, purified: Tensor) -> Tensor:
    """One picture with a column a sample and the rows clean, attacked, purified, ten times the error.

    The error is the distance of the purified image to the clean one, clipped at white.

    Args:
        clean: `(B, 3, H, W)` in [0, 1].
        attacked: `(B, 3, H, W)` in [0, 1].
        purified: `(B, 3, H, W)` in [0, 1].

    Returns:
        `(3, 4 (H + 2), B (W + 2))` in [0, 1], a black line of one pixel round each image.

    Raises:
        ValueError: If the shapes differ.
    """
    if not clean.shape == attacked.shape == purified.shape:
        shapes = ", ".join(str(tuple(images.shape)) for images in (clean, attacked, purified))
        raise ValueError(f"The images of a grid must have one shape, not {shapes}.")
    rows = torch.stack([clean, attacked, purified, (10 * (purified - clean).abs()).clamp(max=1)])
    framed = F.pad(rows, (1, 1, 1, 1))
    return framed.permute(2, 0, 3, 1, 4).flatten(3, 4).flatten(1, 2)


class PurificationGrid(PurifierMonitor):
    """Logs a grid (rows clean, attacked, purified, error x10) of the same validation images to TensorBoard.

    The images are attacked once, against the bare classifier: tag `purification/blind_pgd10/Linf_8-255`. A task without
    a classifier shows uniform noise of that size instead: `purification/noise/Linf_8-255`.

    Args:
        num_images: Number of images, the columns.
        **options: As in `PurifierMonitor`.
    """

    needs_classifier = False

    def __init__(self, num_images: int = 8, **options: Any) -> None:
        super().__init__(num_images, **options)

    def observe(self, trainer: Trainer, pl_module: LightningModule, watched: Watched) -> dict[str, float]:
        """Log the picture.

        Args:
            trainer: The trainer.
            pl_module: The task.
            watched: The networks and images.

        Returns:
            Nothing to monitor.
        """
        purified = watched.purifier(watched.attacked)  # on every process, since its weights may be sharded
        if trainer.is_global_zero:
            attack = "noise" if watched.classifier is None else f"blind_pgd{self.steps}"
            grid = purification_grid(watched.images, watched.attacked, purified)
            for logger in trainer.loggers:
                if isinstance(logger, TensorBoardLogger):
                    logger.experiment.add_image(f"purification/{attack}/{self.threat}", grid, trainer.global_step)
        return {}
