"""A test epoch with the AutoAttack callback on a small defended classifier.

usage: lightning_case.py FOLDER DEVICES; writes what was logged to FOLDER/logged.json.
"""

import json
import sys
from pathlib import Path

import torch
from lightning.pytorch import LightningDataModule, LightningModule, Trainer
from lightning.pytorch.loggers import TensorBoardLogger
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from maep_lightning.attacks.threat import Epsilon
from maep_lightning.callbacks.autoattack import AutoAttackCallback

SAMPLES = 13


class Data(LightningDataModule):
    class_names = tuple("abcd")

    def __init__(self):
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.images = torch.randint(0, 256, (SAMPLES, 3, 6, 6), generator=generator).byte()
        self.labels = torch.randint(0, 4, (SAMPLES,), generator=generator)

    def test_set(self):
        return self.images, self.labels

    def test_dataloader(self):
        return DataLoader(TensorDataset(self.images.float() / 255, self.labels), batch_size=4)


class Task(LightningModule):
    def __init__(self):
        super().__init__()
        self.save_hyperparameters()
        torch.manual_seed(0)
        self.classifier = nn.Sequential(nn.Flatten(), nn.Linear(108, 4)).eval()
        self.purifier = nn.AvgPool2d(3, stride=1, padding=1).eval()

    def test_step(self, batch, batch_idx):
        images, labels = batch
        accuracy = (self.classifier(self.purifier(images)).argmax(1) == labels).float().mean()
        self.log("test/acc_purified", accuracy, sync_dist=True)


def attack(folder, **trainer_options):
    """Run the test epoch; the callback, and what was logged."""
    budget = {"apgd_steps": 3, "fab_steps": 2, "square_queries": 3, "targets": 3}
    callback = AutoAttackCallback(eps=Epsilon("1/255"), chunk_size=4, **budget)
    logger = TensorBoardLogger(folder, name="tb", version="")
    options = {"accelerator": "cpu", "logger": logger, "enable_progress_bar": False, "enable_model_summary": False}
    trainer = Trainer(default_root_dir=folder, callbacks=[callback], **(options | trainer_options))
    trainer.test(Task(), datamodule=Data(), verbose=False)
    return callback, {name: float(value) for name, value in trainer.callback_metrics.items()}, trainer


if __name__ == "__main__":
    torch.set_num_threads(1)
    devices = int(sys.argv[2])
    callback, logged, trainer = attack(sys.argv[1], devices=devices, strategy="ddp" if devices > 1 else "auto")
    path = Path(sys.argv[1]) / f"logged-{trainer.global_rank}.json"
    path.write_text(json.dumps([callback.results.ledger_hash, logged], sort_keys=True))
