import math
from types import SimpleNamespace

import pytest
import torch
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import EMAWeightAveraging

from maep_lightning.data import ImageDataModule
from maep_lightning.tasks import ClassifierTraining, MAEPretraining
from maep_lightning.tasks.base import Optimization, cosine_with_warmup

SMALL = {"width": 32, "depth": 1, "heads": 2, "decoder_width": 32, "decoder_heads": 2, "refine_depth": 0}


def test_cosine_with_warmup__rises_linearly_then_falls_to_zero():
    factors = [cosine_with_warmup(step, 100, 0.1) for step in range(101)]
    assert factors[:10] == pytest.approx([0.1 * (step + 1) for step in range(10)])
    assert factors[55] == pytest.approx(0.5)
    assert factors[10:] == sorted(factors[10:], reverse=True)
    assert factors[100] == pytest.approx(0, abs=1e-12)
    assert math.isfinite(cosine_with_warmup(0, 1, 0.0))


@pytest.mark.parametrize("field", ["warmup", "min_lr_ratio"])
@pytest.mark.parametrize("share", [-0.1, 5])
def test_optimization__refuses_what_is_no_share(field, share):
    with pytest.raises(ValueError, match=f"{field} is a share, from 0 to 1, not {share}"):
        Optimization(**{field: share})


@pytest.mark.parametrize("floor", [0.25, 1.0])
def test_cosine_with_warmup__falls_no_further_than_it_may(floor):
    factors = [cosine_with_warmup(step, 100, 0.1, floor) for step in range(101)]
    assert factors[:10] == pytest.approx([0.1 * (step + 1) for step in range(10)])
    assert factors[55] == pytest.approx((1 + floor) / 2)
    assert factors[100] == pytest.approx(floor)


def fit(task, tmp_path, batch_size=32, **options):
    data = ImageDataModule("digits", batch_size=batch_size, train_limit=128, val_size=20)
    trainer = Trainer(
        accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, default_root_dir=tmp_path, **{"max_epochs": 1, **options},
    )  # fmt: skip
    trainer.fit(task, data)
    return trainer


@pytest.mark.parametrize(("batch_size", "accumulate", "expected"), [(32, 1, 1e-3 / 8), (16, 4, 1e-3 / 4)])
def test_learning_rate__follows_the_effective_batch(tmp_path, batch_size, accumulate, expected):
    task = ClassifierTraining("resnet8", optimization=Optimization(base_lr=1e-3, warmup=0.0))
    trainer = fit(task, tmp_path, batch_size, accumulate_grad_batches=accumulate)
    assert trainer.optimizers[0].defaults["lr"] == pytest.approx(expected)


def optimizer(task):
    task.trainer = Trainer(logger=False, enable_checkpointing=False, accelerator="cpu", max_steps=10)
    task.trainer.datamodule = ImageDataModule("digits", batch_size=256)
    return task.configure_optimizers()["optimizer"]


def test_optimizer__has_the_settings_asked_for():
    adamw = optimizer(ClassifierTraining("resnet8", optimization=Optimization(base_lr=0.2, beta2=0.99, warmup=0.5)))
    for group in adamw.param_groups:
        assert group["betas"] == (0.9, 0.99)
        assert group["lr"] == pytest.approx(0.2 / 5)  # the first of 5 steps up, half of the 10


def test_gradient_checkpointing__reaches_the_autoencoder():
    for asked in (False, True):
        task = MAEPretraining(overrides=SMALL, optimization=Optimization(gradient_checkpointing=asked))
        task.configure_model()
        assert task.purifier.mae.gradient_checkpointing is asked


def test_random_numbers__are_each_process_s_and_each_step_s_own():
    torch.manual_seed(3)
    task, drawn = ClassifierTraining("resnet8"), {}
    for process, step in [(0, 0), (0, 1), (1, 0), (0, 0)]:
        task.trainer = SimpleNamespace(global_rank=process, fit_loop=SimpleNamespace(total_batch_idx=step))
        task.on_train_batch_start(None, 0)
        drawn.setdefault((process, step), []).append(torch.rand(4))
    first, again = drawn.pop((0, 0))
    assert torch.equal(first, again)
    assert not any(torch.equal(first, other) for (other,) in drawn.values())


def test_average_of_the_weights__that_never_begins_is_refused(tmp_path):
    average = EMAWeightAveraging(update_starting_at_step=4)
    with pytest.raises(ValueError, match=r"begins at step 4 and this training ends after 4.*ema\.yaml"):
        fit(MAEPretraining(overrides=SMALL), tmp_path, callbacks=[average])
    fit(MAEPretraining(overrides=SMALL), tmp_path, callbacks=[EMAWeightAveraging(update_starting_at_step=3)])


def test_training__without_an_end_is_refused(tmp_path):
    with pytest.raises(ValueError, match="set max_epochs"):
        fit(MAEPretraining(overrides=SMALL), tmp_path, max_epochs=-1, max_time="00:00:01:00")


def test_optimizer__decays_matrices_only():
    task = ClassifierTraining("resnet8", optimization=Optimization(weight_decay=0.3))
    groups = {g["name"]: g for g in optimizer(task).param_groups}
    assert groups["decay"]["weight_decay"] == 0.3
    assert groups["no_decay"]["weight_decay"] == 0
    assert all(p.ndim > 1 for p in groups["decay"]["params"])
    assert sum(len(g["params"]) for g in groups.values()) == len(list(task.classifier.parameters()))


def test_classifier_training__learns_the_digits(tmp_path):
    torch.manual_seed(0)
    task = ClassifierTraining("resnet8", optimization=Optimization(base_lr=2e-2))
    data = ImageDataModule("digits", batch_size=32, train_limit=600, val_size=100)
    trainer = Trainer(
        max_epochs=3, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, default_root_dir=tmp_path,
    )  # fmt: skip
    trainer.fit(task, data)
    assert trainer.callback_metrics["val/acc_clean"] > 0.6


def test_mae_pretraining__lowers_the_masked_loss_on_held_out_images(tmp_path):
    torch.manual_seed(0)
    task = MAEPretraining(overrides=SMALL, optimization=Optimization(base_lr=3e-2))
    data = ImageDataModule("digits", batch_size=32, train_limit=600, val_size=100)
    images = data.val_set().images.float() / 255
    noise = torch.rand(100, 64)
    before = task.loss(images, noise).item()
    Trainer(
        max_epochs=3, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, default_root_dir=tmp_path,
    ).fit(task, data)  # fmt: skip
    assert task.loss(images, noise).item() < 0.7 * before
