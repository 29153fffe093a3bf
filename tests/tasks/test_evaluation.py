import warnings

import pytest
import torch
from lightning.pytorch import LightningDataModule, Trainer
from torch.utils.data import DataLoader, TensorDataset

from maep_lightning.models.purifier import Purifier
from maep_lightning.tasks import PurifierEvaluation

NAME = "maep_conv_patch4_32_cifar10"


def test_predict__purifies_under_the_policy():
    images = torch.rand(2, 3, 32, 64)
    purifier = Purifier.from_pretrained(NAME)
    with torch.no_grad():
        purified = PurifierEvaluation(purifier=NAME, policy="tile").predict_step([images, ["a", "b"]], 0)
        expected = torch.cat([purifier(half) for half in images.split(32, dim=3)], dim=3)
    torch.testing.assert_close(purified, expected, rtol=0, atol=1e-5)


def test_policy__needs_a_purifier():
    with pytest.raises(ValueError, match="policy tile serves a purifier"):
        PurifierEvaluation(classifier="classifier.safetensors", policy="tile")


class Levels(LightningDataModule):
    """Images whose brightness is their class."""

    def test_set(self):
        labels = torch.arange(64) % 3
        return (0.2 + 0.3 * labels.float()).view(-1, 1, 1, 1).expand(-1, 3, 32, 32), labels

    def test_dataloader(self):
        return DataLoader(TensorDataset(*self.test_set()), batch_size=32)


@pytest.mark.parametrize(("norm", "warned"), [("half", True), ("none", False)])
def test_test__warns_of_a_wrong_normalisation_before_it_starts(tmp_path, monkeypatch, norm, warned):
    (tmp_path / "levels_classifier.py").write_text(
        "import torch\n"
        "def classify(images):\n"
        "    return -(images.mean(dim=(1, 2, 3))[:, None] - torch.tensor([0.2, 0.5, 0.8])).abs()\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    task = PurifierEvaluation(classifier=f"python:levels_classifier:classify,norm={norm}")
    options = {"accelerator": "cpu", "logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        Trainer(default_root_dir=tmp_path, **options).test(task, datamodule=Levels(), verbose=False)
    assert any("Add norm=none to its name" in str(warning.message) for warning in caught) == warned
