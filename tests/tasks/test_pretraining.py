import logging

import pytest
import torch
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import ModelCheckpoint

from maep_lightning.data import ImageDataModule
from maep_lightning.models.classifiers import create_classifier, save_classifier
from maep_lightning.models.weights import whole_state
from maep_lightning.tasks import ClassifierTraining, MAEPretraining, PurifierFinetuning
from maep_lightning.tasks.base import Optimization

SHAPE = {"width": 16, "depth": 1, "heads": 2, "decoder_width": 16, "decoder_depth": 1, "decoder_heads": 2}
PLAIN = SHAPE | {"refine_depth": 0, "residual": False}


def trainer(folder, **options):
    return Trainer(
        accelerator="cpu", logger=False, enable_progress_bar=False, enable_model_summary=False,
        default_root_dir=folder, **{"enable_checkpointing": False, "max_epochs": 2, **options},
    )  # fmt: skip


def data(**options):
    return ImageDataModule("digits", batch_size=32, train_limit=96, val_size=20, **options)


@pytest.mark.parametrize("sharded", [False, True], ids=["plain", "fsdp"])
def test_resume_inside_an_epoch__has_the_images_and_masks_of_an_unbroken_run(tmp_path, request, sharded):
    strategy = request.getfixturevalue("fsdp") if sharded else lambda: "auto"
    weights = []
    for name, ckpt_path in (("whole", None), ("resumed", tmp_path / "whole" / "epoch=0-step=2.ckpt")):
        torch.manual_seed(5)
        task = MAEPretraining(overrides=PLAIN, optimization=Optimization(base_lr=1e-2))
        torch.rand(len(weights))  # the global stream is somewhere else
        saver = ModelCheckpoint(dirpath=tmp_path / name, every_n_train_steps=2, save_top_k=-1)
        run = trainer(tmp_path, callbacks=[saver], enable_checkpointing=True, strategy=strategy(), devices=1)
        run.fit(task, data(), ckpt_path=ckpt_path)
        weights.append(whole_state(task))
    assert all(torch.equal(value, weights[1][name]) for name, value in weights[0].items())


@pytest.mark.parametrize("mask_ratio", [0, 1, 75])
def test_mask_ratio__of_which_nothing_is_learnt_is_refused(mask_ratio):
    with pytest.raises(ValueError, match=r"mask_ratio must be in \(0, 1\)"):
        MAEPretraining(overrides=PLAIN, mask_ratio=mask_ratio)


def test_validation_loss__does_not_depend_on_the_batch_size(tmp_path):
    torch.manual_seed(0)
    task = MAEPretraining(overrides=PLAIN)
    losses = [
        trainer(tmp_path).validate(task, data(eval_batch_size=size), verbose=False)[0]["val/loss"] for size in (20, 7)
    ]
    assert losses[0] == pytest.approx(losses[1], rel=1e-6)


@pytest.mark.parametrize(("mask_ratio", "norm_pix"), [(0.25, False), (0.75, True)])
def test_loss__is_that_of_he_et_al_on_the_share_of_patches_asked_for(mask_ratio, norm_pix):
    torch.manual_seed(0)
    task = MAEPretraining(overrides=PLAIN, mask_ratio=mask_ratio, norm_pix=norm_pix)
    images, noise = torch.rand(2, 3, 32, 32), torch.rand(2, 64)
    removed = noise.argsort(dim=1).argsort(dim=1) >= 64 * (1 - mask_ratio)
    predicted = task.purifier.mae(images, mask_ratio, noise=noise).patches
    target = torch.einsum("bchpwq->bhwpqc", ((images - 0.5) / 0.25).reshape(2, 3, 8, 4, 8, 4)).reshape(2, 64, 48)
    if norm_pix:
        target = (target - target.mean(2, keepdim=True)) / (target.var(2, keepdim=True) + 1e-6).sqrt()
    torch.testing.assert_close(task.loss(images, noise), (predicted - target)[removed].square().mean())


@pytest.fixture
def published_file(published, tmp_path):
    state = published.random_state(image_size=32, patch=4, width=16, depth=1, decoder_width=16, decoder_depth=1)
    torch.save({"model": state}, tmp_path / "mae.pth")
    return str(tmp_path / "mae.pth"), state


@pytest.mark.parametrize("stage", ["pretraining", "finetuning"])
def test_weights__a_published_file_is_where_the_stage_starts_and_is_reported(published_file, stage, tmp_path, caplog):
    path, state = published_file
    caplog.set_level(logging.INFO)
    options = {"weights": path, "shape": "mae_vit_tiny_patch4_32", "overrides": PLAIN}
    if stage == "pretraining":
        task = MAEPretraining(**options)
    else:
        classifier = tmp_path / "classifier.safetensors"
        save_classifier(create_classifier("resnet8", 10), classifier, "resnet8", 10)
        task = PurifierFinetuning(str(classifier), **options)
    assert all(torch.equal(value, state[name]) for name, value in task.purifier.mae.state_dict().items())
    assert f"Weights of {path}" in caplog.text
    assert "ImageNet's mean and std" in caplog.text


def test_gradient_checkpointing__is_refused_where_it_would_do_nothing(tmp_path):
    task = ClassifierTraining("resnet8", optimization=Optimization(gradient_checkpointing=True))
    with pytest.raises(ValueError, match="CifarResNet holds no masked autoencoder"):
        trainer(tmp_path).fit(task, data())
