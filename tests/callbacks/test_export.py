import numpy as np
from lightning.pytorch import Trainer
from PIL import Image

from maep_lightning.callbacks import ExportWeights
from maep_lightning.data import ImageDataModule
from maep_lightning.models.purifier import read_purifier
from maep_lightning.tasks import MAEPretraining


def test_export__names_the_folder_that_the_weights_were_trained_on(tmp_path):
    for number in range(8):
        path = tmp_path / "birds" / "train" / f"class{number % 2}" / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((32, 32, 3), 20 * number, dtype=np.uint8)).save(path)
    tiny = {"width": 16, "depth": 1, "heads": 2, "decoder_width": 16, "decoder_heads": 2, "refine_depth": 0}
    data = ImageDataModule("folder", folder=str(tmp_path / "birds"), image_size=32, val_size=0, batch_size=4)
    Trainer(
        max_epochs=1, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, default_root_dir=tmp_path, callbacks=[ExportWeights("purifier.safetensors")],
    ).fit(MAEPretraining(overrides=tiny), data)  # fmt: skip
    provenance = read_purifier(tmp_path / "purifier.safetensors")[1]["provenance"]
    assert provenance["data"] == "birds"
    assert provenance["steps"] == 2
