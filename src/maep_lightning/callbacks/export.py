"""The file that a stage leaves for the next one."""

from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from maep_lightning.data import ImageDataModule
from maep_lightning.evaluation.fingerprint import of_packages
from maep_lightning.tasks.base import Task


class ExportWeights(Callback):
    """Writes what the next stage reads, once training has ended.

    Args:
        filename: Name of the safetensors file in the trainer's `default_root_dir`.
    """

    def __init__(self, filename: str) -> None:
        self.filename = filename

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the file; averaged weights, where an EMA is on. Every process takes part: weights may be sharded."""
        if not isinstance(pl_module, Task) or trainer.interrupted:
            return
        data = trainer.datamodule  # type: ignore[attr-defined]
        provenance: dict[str, Any] = {
            "task": type(pl_module).__name__,
            "data": data.source.title if isinstance(data, ImageDataModule) else type(data).__name__,
            "steps": trainer.global_step,
            "epochs": trainer.current_epoch,
            "versions": of_packages(),
        }
        pl_module.export(Path(trainer.default_root_dir) / self.filename, provenance)
