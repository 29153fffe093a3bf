"""The shipped pre-training at 224 px in real processes, streaming a folder of images: the curve of one process."""

import csv
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from maep_lightning.cli import main
from maep_lightning.models.purifier import Purifier

ROOT = Path(__file__).parents[2]
SMALL = "{width: 32, depth: 2, heads: 2, decoder_width: 32, decoder_depth: 1, decoder_heads: 2}"
DDP = ("--trainer.devices=2", "--trainer.strategy=ddp")
FSDP = (
    f"--config={ROOT}/configs/scale/fsdp.yaml", "--trainer.devices=2", "--trainer.strategy.data_parallel_size=2",
    "--model.optimization.gradient_checkpointing=true",
)  # fmt: skip
GLOBAL_BATCH, EPOCHS, STEPS = 8, 3, 6


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """22 training images, of which 6 are held out; bright ones, which there is to learn."""
    root, draw = tmp_path_factory.mktemp("images"), np.random.RandomState(0)
    for side in ("left", "right"):
        (root / "train" / side).mkdir(parents=True)
        for number in range(11):
            blocks = draw.randint(200, 256, (7, 7, 3), dtype=np.uint8)
            Image.fromarray(blocks.repeat(32, 0).repeat(32, 1)).save(root / "train" / side / f"{number}.png")
    return root


@pytest.fixture(scope="module")
def fit(images, tmp_path_factory):
    """Runs `configs/imagenet/pretrain.yaml` at a small width; the curves and the purifier that it leaves."""

    def run(*words, processes=1):
        folder = tmp_path_factory.mktemp("run")
        words = [
            "fit", f"--config={ROOT}/configs/imagenet/pretrain.yaml",
            "--data.dataset=folder", f"--data.folder={images}", "--data.val_size=6", "--data.memory_gb=0",
            "--data.num_workers=1", f"--data.batch_size={GLOBAL_BATCH // processes}",
            f"--model.overrides={SMALL}", "--model.optimization.base_lr=0.3",
            "--trainer.accelerator=cpu", f"--trainer.max_epochs={EPOCHS}", "--trainer.log_every_n_steps=1",
            "--trainer.enable_progress_bar=false", "--trainer.enable_model_summary=false",
            f"--trainer.default_root_dir={folder}",
            "--trainer.logger=lightning.pytorch.loggers.CSVLogger", f"--trainer.logger.save_dir={folder}",
            "--trainer.logger.name=log", "--trainer.logger.version=v", *words,
        ]  # fmt: skip
        if processes == 1:
            main(words)
        else:
            command = [sys.executable, "-m", "maep_lightning", *words]
            environment = os.environ | {"OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
            done = subprocess.run(command, env=environment, cwd=folder, capture_output=True, text=True, timeout=600)
            assert done.returncode == 0, done.stderr
        rows = list(csv.DictReader((folder / "log" / "v" / "metrics.csv").open()))
        curves = [[float(row[name]) for row in rows if row[name]] for name in ("train/loss", "val/loss")]
        return *curves, Purifier.from_pretrained(folder / "purifier.safetensors")

    return run


@pytest.fixture(scope="module")
def alone(fit):
    return fit()


@pytest.mark.world_size
@pytest.mark.parametrize("words", [DDP, FSDP], ids=["ddp", "fsdp"])
def test_pretraining_at_224__two_processes_have_the_curve_of_one(fit, alone, words):
    train, val, purifier = fit(*words, processes=2)
    assert len(train) == STEPS
    assert len(val) == EPOCHS
    assert train[-1] < 0.9 * train[0]
    assert train == pytest.approx(alone[0], rel=1e-4)
    assert val == pytest.approx(alone[1], rel=1e-4)
    photo = torch.rand(1, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():  # single weights, whose gradients are all but zero, may differ: Adam enlarges their rounding
        torch.testing.assert_close(purifier(photo), alone[2](photo), atol=1e-2, rtol=0)
