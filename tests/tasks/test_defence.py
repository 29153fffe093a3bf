import warnings
from unittest.mock import MagicMock

import pytest
import torch
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import EMAWeightAveraging, ModelCheckpoint

from maep_lightning.callbacks import ExportWeights
from maep_lightning.data import ImageDataModule
from maep_lightning.models.classifiers import create_classifier, save_classifier
from maep_lightning.models.purifier import Purifier
from maep_lightning.models.registry import create_purifier
from maep_lightning.tasks import AdversarialFinetuning, PurifierFinetuning
from maep_lightning.tasks.base import Optimization
from maep_lightning.tasks.defence import LoRA
from maep_lightning.tasks.purification import PairAttack

SMALL = {"width": 16, "depth": 1, "heads": 2, "decoder_width": 16, "decoder_heads": 2, "refine_depth": 0}


@pytest.fixture
def task(tmp_path):
    """Builds LoRA stages that start alike, or, of kind `whitebox`, stages of the `deep` shape that attack it."""
    torch.manual_seed(0)
    save_classifier(create_classifier("resnet8", 10), tmp_path / "classifier.safetensors", "resnet8", 10)
    purifier = create_purifier("maep_conv_patch4_32", **SMALL)
    for parameter in purifier.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    purifier.save_pretrained(tmp_path / "start.safetensors")

    def build(kind="lora", **options):
        torch.manual_seed(1)
        classifier, optimization = str(tmp_path / "classifier.safetensors"), Optimization(base_lr=0.1, **options)
        if kind == "whitebox":
            deep = SMALL | {"refine_depth": 1, "refine_width": 4}
            return AdversarialFinetuning(
                classifier, shape="maep_deep_patch4_32", overrides=deep, pixel=1.0, optimization=optimization
            )
        return PurifierFinetuning(
            classifier, weights=str(tmp_path / "start.safetensors"), lora=LoRA(rank=2),
            consistency=1.0, attack=PairAttack(steps=0), optimization=optimization,
        )  # fmt: skip

    return build


def fit(task, folder, strategy="auto", callbacks=(), ckpt_path=None):
    trainer = Trainer(
        max_epochs=2, accelerator="cpu", devices=1, strategy=strategy, logger=False, default_root_dir=folder,
        enable_progress_bar=False, enable_model_summary=False, gradient_clip_val=1.0,
        callbacks=[ExportWeights("purifier.safetensors"), ModelCheckpoint(dirpath=folder, save_last=True), *callbacks],
    )  # fmt: skip
    trainer.fit(task, ImageDataModule("digits", batch_size=32, train_limit=96, val_size=20), ckpt_path=ckpt_path)
    return Purifier.from_pretrained(folder / "purifier.safetensors").state_dict()


def test_fsdp__trains_saves_resumes_and_exports_as_without(task, fsdp, tmp_path):
    expected = fit(task(), tmp_path / "plain")
    sharded = fit(task(gradient_checkpointing=True), tmp_path / "sharded", fsdp())
    start = Purifier.from_pretrained(tmp_path / "start.safetensors").state_dict()
    moved = {name for name, value in sharded.items() if not torch.equal(value, start[name])}
    assert moved == {f"mae.decoder_blocks.0.{x}.weight" for x in ("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2")}
    for name, value in sharded.items():
        torch.testing.assert_close(value, expected[name], atol=1e-5, rtol=1e-4)

    checkpoint = torch.load(tmp_path / "sharded" / "last.ckpt", weights_only=True)
    assert not any(name.startswith("classifier") for name in checkpoint["state_dict"])
    resumed = fit(task(), tmp_path / "resumed", fsdp(), ckpt_path=tmp_path / "sharded" / "last.ckpt")
    assert all(torch.equal(value, sharded[name]) for name, value in resumed.items())


def test_fsdp__trains_through_attacks_on_sharded_weights_as_without(task, fsdp, tmp_path, monkeypatch):
    # Without channels-last, whose rounding, as that of any layout, grows in the signs of the attack's gradients.
    monkeypatch.setattr(AdversarialFinetuning, "on_fit_start", lambda self: None)
    expected = fit(task("whitebox"), tmp_path / "plain")
    sharded = fit(task("whitebox", gradient_checkpointing=True), tmp_path / "sharded", fsdp())
    assert sharded.keys() == expected.keys()
    for name, value in sharded.items():
        torch.testing.assert_close(value, expected[name], atol=1e-6, rtol=1e-5)


NEAREST = """
import torch
from maep_lightning.data import ImageDataModule

images, labels = ImageDataModule("digits").train_set()
MEANS = torch.stack([images[labels == k].float().mean(0).flatten() for k in range(10)])

def classify(images):
    return -(images.flatten(1)[:, None] - MEANS).square().mean(2).sqrt()  # of pixels from 0 to 255
"""


@pytest.mark.parametrize(("norm", "warned"), [("imagenet", True), ("255", False)])
def test_fit__says_that_the_normalisation_of_the_classifier_is_wrong(tmp_path, monkeypatch, norm, warned):
    (tmp_path / "nearest_digit.py").write_text(NEAREST)
    monkeypatch.syspath_prepend(tmp_path)
    stage = PurifierFinetuning(
        f"python:nearest_digit:classify,norm={norm}", overrides=SMALL, attack=PairAttack(steps=0)
    )
    trainer = Trainer(
        fast_dev_run=1, accelerator="cpu", enable_progress_bar=False, enable_model_summary=False, logger=False
    )
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        trainer.fit(stage, ImageDataModule("digits", batch_size=8, train_limit=8, val_size=64))
    assert any("Add norm=255 to classifier_name" in str(warning.message) for warning in caught) == warned


def test_fit__says_that_files_are_cropped_otherwise_than_the_weights_of_the_classifier_want(framed, tmp_path):
    folder, classifier = framed
    save_classifier(create_classifier("resnet8", 2), tmp_path / "classifier.safetensors", "resnet8", 2)
    stage = PurifierFinetuning(str(tmp_path / "classifier.safetensors"), overrides=SMALL, attack=PairAttack(steps=0))
    stage.classifier = classifier
    trainer = Trainer(
        fast_dev_run=1, accelerator="cpu", enable_progress_bar=False, enable_model_summary=False, logger=False
    )
    data = ImageDataModule("folder", folder=folder, image_size=32, batch_size=4, val_size=0)
    with pytest.warns(UserWarning, match=r"give --data\.crop_pct 0\.95 and --data\.interpolation bicubic\."):
        trainer.fit(stage, data)


def test_fsdp__refuses_to_average_weights(task, fsdp, tmp_path):
    with pytest.raises(ValueError, match=r"leave ema\.yaml, or the callback EMAWeightAveraging, out"):
        fit(task(), tmp_path, fsdp(), callbacks=[EMAWeightAveraging()])


def test_fsdp__refuses_to_split_layers(task):
    stage = task()
    stage._device_mesh = MagicMock()  # as Lightning sets it where the sizes are left to it, on one node of 8
    stage._device_mesh.size.return_value = stage._device_mesh["tensor_parallel"].size.return_value = 8
    with pytest.raises(ValueError, match=r"data_parallel_size 8 --trainer\.strategy\.tensor_parallel_size 1"):
        stage.configure_model()
