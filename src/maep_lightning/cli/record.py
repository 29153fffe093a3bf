"""What ran: configuration and provenance of each command, beside its logs."""

import json
import time
from pathlib import Path

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.cli import SaveConfigCallback

from maep_lightning.evaluation.provenance import describe_run


class RecordCallback(SaveConfigCallback):
    """Saves `VERB.yaml`, which runs again with `--config`, and `VERB.run.json` in the log directory.

    The second holds command, commit, seed, hardware and versions, and the run's seconds once it has ended. A run
    without a logger leaves nothing in the working directory.
    """

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Save both, once a run."""
        if trainer.loggers:
            super().setup(trainer, pl_module, stage)

    def save_config(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Save what the configuration does not say; called on the first process only."""
        self.started = time.monotonic()
        self._write(trainer, None)

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Add the time, once the run has ended."""
        if self.already_saved and trainer.is_global_zero:
            self._write(trainer, time.monotonic() - self.started)

    def _write(self, trainer: Trainer, seconds: float | None) -> None:
        run = describe_run(self.config.seed_everything, seconds or 0.0)
        if seconds is None:
            run["seconds"] = None
        folder = Path(trainer.loggers[0].log_dir or trainer.default_root_dir)
        (folder / self.config_filename).with_suffix(".run.json").write_text(json.dumps(run, indent=2) + "\n")
