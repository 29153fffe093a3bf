import copy

import pytest
import torch
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import ModelCheckpoint

from maep_lightning.attacks.threat import Epsilon
from maep_lightning.callbacks import ExportWeights
from maep_lightning.data import ImageDataModule
from maep_lightning.models.classifiers import create_classifier, save_classifier
from maep_lightning.models.purifier import Purifier
from maep_lightning.models.registry import load_purifier
from maep_lightning.models.shapes import create_mae
from maep_lightning.tasks import PurifierEvaluation, PurifierFinetuning
from maep_lightning.tasks.base import Optimization
from maep_lightning.tasks.defence import LoRA
from maep_lightning.tasks.purification import PairAttack

SMALL = {
    "width": 16, "depth": 1, "heads": 2, "decoder_width": 16, "decoder_heads": 2, "refine_depth": 2, "refine_width": 8
}  # fmt: skip


@pytest.fixture
def classifier_file(tmp_path):
    torch.manual_seed(0)
    save_classifier(create_classifier("resnet8", 10), tmp_path / "classifier.safetensors", "resnet8", 10)
    return str(tmp_path / "classifier.safetensors")


@pytest.fixture
def purifier_file(tmp_path):
    torch.manual_seed(0)
    purifier = Purifier(create_mae("maep_conv_patch4_32", **SMALL))
    for parameter in purifier.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    purifier.save_pretrained(tmp_path / "purifier.safetensors")
    return str(tmp_path / "purifier.safetensors")


def attack(**options):
    return PairAttack(**{"eps": Epsilon("16/255"), "step_size": Epsilon("8/255"), "steps": 2, "bf16": False, **options})


def run(task, tmp_path, epochs=1, augment=False, callbacks=(), ckpt_path=None, **options):
    data = ImageDataModule("digits", batch_size=32, train_limit=96, val_size=20, augment=augment)
    trainer = Trainer(
        max_epochs=epochs, accelerator="cpu", logger=False, enable_progress_bar=False, enable_model_summary=False,
        default_root_dir=tmp_path, callbacks=list(callbacks), enable_checkpointing=bool(callbacks), **options,
    )  # fmt: skip
    trainer.fit(task, data, ckpt_path=ckpt_path)
    return trainer


def test_attacked__raises_the_loss_of_the_surrogate_within_eps(classifier_file):
    task = PurifierFinetuning(classifier_file, overrides=SMALL, attack=attack(steps=5))
    images, labels = torch.rand(8, 3, 32, 32), torch.arange(8)
    attacked = task.attacked(images, labels)
    cross_entropy = torch.nn.functional.cross_entropy
    assert cross_entropy(task.classifier(attacked), labels) > cross_entropy(task.classifier(images), labels)
    assert (attacked - images).abs().max() <= 16 / 255 + 1e-6


@pytest.mark.parametrize(("kind", "power"), [("l1", 1), ("l2", 2)])
def test_purification_loss__is_the_distance_to_the_clean_image(classifier_file, kind, power):
    task = PurifierFinetuning(classifier_file, overrides=SMALL, loss=kind)  # fresh residual network: the identity
    attacked, clean = torch.rand(2, 4, 3, 32, 32)
    loss, _ = task.purification_loss(attacked, clean)
    torch.testing.assert_close(loss, (attacked - clean).abs().pow(power).mean(), atol=1e-6, rtol=1e-5)


def test_consistency__adds_the_divergence_of_the_predictions(classifier_file, tmp_path):
    losses = {}
    for weight in (0.0, 5.0):
        torch.manual_seed(0)
        task = PurifierFinetuning(classifier_file, overrides=SMALL, consistency=weight, attack=attack(steps=0))
        losses[weight] = run(task, tmp_path, epochs=2).callback_metrics
    assert "train/consistency" not in losses[0.0]
    added = losses[5.0]["train/loss"] - losses[5.0]["train/purification_loss"]
    # the last of 6 steps: the weight has risen to 5/6 of its end
    torch.testing.assert_close(added, 5.0 * 5 / 6 * losses[5.0]["train/consistency"], rtol=1e-4, atol=1e-6)


def test_clean_fraction__one_trains_on_clean_pairs_alone(classifier_file, tmp_path):
    task = PurifierFinetuning(classifier_file, overrides=SMALL, clean_fraction=1.0, attack=attack())
    metrics = run(task, tmp_path).callback_metrics
    # the fresh residual network is the identity, so clean pairs leave nothing to learn
    assert metrics["train/purification_loss"] < 1e-3


def test_refresh__keeps_attacked_images_for_the_epochs_asked_for(classifier_file, tmp_path, monkeypatch):
    counts = {}
    for refresh in (1, 2, 4):
        task = PurifierFinetuning(classifier_file, overrides=SMALL, attack=attack(refresh=refresh, steps=1))
        seen, attacked = [], task.attacked

        def counted(images, labels, attacked=attacked, seen=seen):
            seen.append(len(images))
            return attacked(images, labels)

        monkeypatch.setattr(task, "attacked", counted)
        run(task, tmp_path, epochs=4, limit_val_batches=0)
        counts[refresh] = sum(seen)
    assert counts == {1: 4 * 96, 2: 2 * 96, 4: 96}


def test_refresh__refuses_images_that_change_between_epochs(classifier_file, tmp_path):
    task = PurifierFinetuning(classifier_file, overrides=SMALL, attack=attack(refresh=2))
    with pytest.raises(ValueError, match=r"data\.init_args\.augment to false"):
        run(task, tmp_path, augment=True)


def test_lora__moves_the_adapters_alone(classifier_file, purifier_file, tmp_path):
    task = PurifierFinetuning(
        classifier_file, weights=purifier_file, lora=LoRA(rank=2, targets=["qkv"]), attack=attack(steps=1),
        optimization=Optimization(base_lr=0.1),
    )  # fmt: skip
    before = copy.deepcopy(task.purifier.state_dict())
    run(task, tmp_path)
    moved = {name for name, value in task.purifier.state_dict().items() if not torch.equal(value, before[name])}
    assert moved == {f"mae.decoder_blocks.0.attn.qkv.lora_{x}" for x in "AB"}


def test_finetuning__trains_another_architecture_the_same_way(classifier_file, tmp_path):
    disco = {"shape": "disco_small", "overrides": {"width": 4, "depth": 1, "mlp_width": 8, "mlp_depth": 1}}
    task = PurifierFinetuning(classifier_file, **disco, attack=attack(steps=1))
    run(task, tmp_path, callbacks=[ExportWeights("purifier.safetensors")])
    images = torch.rand(2, 3, 32, 32)
    exported = load_purifier(tmp_path / "purifier.safetensors")
    torch.testing.assert_close(exported(images), task.purifier.eval()(images), atol=1e-6, rtol=0)
    with pytest.raises(ValueError, match="disco_small has not"):
        PurifierFinetuning(classifier_file, **disco, lora=LoRA())


def test_finetuning__weights_of_the_stage_before_are_where_it_starts(classifier_file, purifier_file):
    task = PurifierFinetuning(classifier_file, weights=purifier_file)
    expected = Purifier.from_pretrained(purifier_file).state_dict()
    assert all(torch.equal(value, expected[name]) for name, value in task.purifier.state_dict().items())


def test_checkpoint__is_plain_holds_no_surrogate_and_resumes_to_the_same_weights(classifier_file, tmp_path):
    def fresh(folder):
        torch.manual_seed(0)
        task = PurifierFinetuning(classifier_file, overrides=SMALL, attack=attack(steps=0))
        saver = ModelCheckpoint(dirpath=folder, save_last=True, every_n_train_steps=2, save_on_train_epoch_end=False)
        return task, saver

    task, saver = fresh(tmp_path / "a")
    run(task, tmp_path, epochs=2, callbacks=[saver])
    content = torch.load(saver.last_model_path, weights_only=True)
    assert content["global_step"] == 6
    assert not any(name.startswith("classifier") for name in content["state_dict"])

    again, saver = fresh(tmp_path / "b")
    run(again, tmp_path, epochs=2, callbacks=[saver], ckpt_path=str(tmp_path / "a" / "last.ckpt"))
    for name, value in task.purifier.state_dict().items():
        assert torch.equal(value, again.purifier.state_dict()[name]), name


def test_export__writes_the_purifier_when_training_has_ended(classifier_file, tmp_path):
    task = PurifierFinetuning(classifier_file, overrides=SMALL, attack=attack(steps=1))
    run(task, tmp_path, callbacks=[ExportWeights("purifier.safetensors")])
    exported = Purifier.from_pretrained(tmp_path / "purifier.safetensors")
    images = torch.rand(2, 3, 32, 32)
    torch.testing.assert_close(exported(images), task.purifier.eval()(images), atol=1e-6, rtol=0)


def test_evaluation__counts_clean_accuracy_with_and_without_the_purifier(classifier_file, purifier_file, tmp_path):
    task = PurifierEvaluation(classifier_file, purifier_file)
    data = ImageDataModule("digits", test_limit=37, eval_batch_size=10)
    trainer = Trainer(
        accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
        default_root_dir=tmp_path,
    )  # fmt: skip
    trainer.test(task, data, verbose=False)
    images, labels = data.test_set()
    images = images.float() / 255
    expected = {
        "test/acc_clean": (task.classifier(images).argmax(1) == labels).float().mean(),
        "test/acc_purified": (task.classifier(task.purifier(images)).argmax(1) == labels).float().mean(),
    }
    for name, value in expected.items():
        torch.testing.assert_close(trainer.callback_metrics[name], value)


def test_evaluation__says_what_is_missing(classifier_file):
    with pytest.raises(ValueError, match="Give the file of a classifier"):
        PurifierEvaluation()
    with pytest.raises(ValueError, match="predict needs a purifier"):
        PurifierEvaluation(classifier_file).predict_step((torch.rand(1, 3, 32, 32),), 0)
