"""What ran: the configuration of each command, beside its logs."""

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.cli import SaveConfigCallback


class RecordCallback(SaveConfigCallback):
    """Saves the configuration in the log directory; a run without a logger leaves nothing in the working directory."""

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Save it, once a run."""
        if trainer.loggers:
            super().setup(trainer, pl_module, stage)
