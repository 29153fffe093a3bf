from dataclasses import replace

import pytest
import torch
from lightning.pytorch import Trainer
from lightning.pytorch.strategies import SingleDeviceStrategy
from torch import nn

from maep_lightning.attacks.simple import simple_attack
from maep_lightning.attacks.threat import Epsilon
from maep_lightning.data import ImageDataModule
from maep_lightning.models.classifiers import create_classifier, load_classifier, save_classifier
from maep_lightning.models.policies import apply_policy
from maep_lightning.tasks import CollageFinetuning
from maep_lightning.tasks.base import Optimization
from maep_lightning.tasks.pairs import PairAttack

SMALL = {
    "width": 16, "depth": 1, "heads": 2, "decoder_width": 16, "decoder_heads": 2, "refine_depth": 2, "refine_width": 8
}  # fmt: skip
ATTACK = PairAttack(["pgd", "mi-fgsm", "di-mi-fgsm"], Epsilon("16/255"), Epsilon(0), Epsilon("8/255"), 2, bf16=False)


@pytest.fixture
def classifier_file(tmp_path):
    """Of 7 classes, which have nothing to do with those of the data."""
    torch.manual_seed(0)
    save_classifier(create_classifier("resnet8", 7), tmp_path / "classifier.safetensors", "resnet8", 7)
    return str(tmp_path / "classifier.safetensors")


def fit(task, tmp_path, batch_size=32, epochs=1, **options):
    data = ImageDataModule("digits", batch_size=batch_size, eval_batch_size=16, train_limit=64, val_size=20)
    trainer = Trainer(
        max_epochs=epochs, accelerator="cpu", logger=False, enable_progress_bar=False, enable_model_summary=False,
        default_root_dir=tmp_path, enable_checkpointing=False, **options,
    )  # fmt: skip
    trainer.fit(task, data)
    return trainer.callback_metrics


def test_purify__is_the_tile_policy(classifier_file, purifier_file):
    task = CollageFinetuning(classifier_file, weights=purifier_file, side=96)
    images = torch.rand(2, 3, 96, 96)
    with torch.no_grad():
        expected = apply_policy(task.purifier.eval(), "tile")(images)
        torch.testing.assert_close(task.purify(images).clamp(0, 1), expected)


def test_fit__attacks_what_the_classifier_says_and_trains_the_purifier_alone(classifier_file, tmp_path):
    task = CollageFinetuning(classifier_file, overrides=SMALL, side=64, attack=ATTACK, noise=0.05)
    seen = []

    def attack(model, images, labels, generator=None):
        seen.append((images, labels))
        return ATTACK(model, images, labels, generator)

    task.attack = attack
    task.attack.judge = ATTACK.judge
    metrics = fit(task, tmp_path)
    frozen = load_classifier(classifier_file)
    assert len(seen) == 2  # 64 images: two batches of 8 collages
    for images, labels in seen:
        assert images.shape == (8, 3, 64, 64)
        assert torch.equal(labels, frozen(images).argmax(1))
    assert all(torch.equal(a, b) for a, b in zip(task.classifier.parameters(), frozen.parameters(), strict=True))
    assert all(0 <= metrics[f"val/{name}"] <= 1 for name in ("agree_purified", "agree_blind_pgd"))


def test_loss__is_the_distance_and_the_weighted_divergence(classifier_file, purifier_file, tmp_path):
    task = CollageFinetuning(classifier_file, weights=purifier_file, side=64, consistency=0.5, attack=ATTACK)
    found = fit(task, tmp_path)
    torch.testing.assert_close(found["train/loss"], found["train/purification_loss"] + 0.5 * found["train/consistency"])
    assert found["train/consistency"] > 0


def test_loss__adds_the_weighted_distance_of_layers(classifier_file, purifier_file, tmp_path):
    task = CollageFinetuning(
        classifier_file, weights=purifier_file, side=64, consistency=0.0, guidance=0.5, guides=["layer2"],
        attack=ATTACK,
    )  # fmt: skip
    found = fit(task, tmp_path)
    torch.testing.assert_close(found["train/loss"], found["train/purification_loss"] + 0.5 * found["train/guidance"])
    assert found["train/guidance"] > 0


def test_consistency__of_a_purifier_that_changes_nothing_is_zero(classifier_file, tmp_path):
    still = Optimization(base_lr=0.0)
    task = CollageFinetuning(classifier_file, overrides=SMALL, side=64, clean_fraction=1.0, optimization=still)
    found = fit(task, tmp_path)  # a fresh residual network is the identity
    assert found["train/consistency"].abs() < 1e-5
    assert found["train/purification_loss"] < 1e-5
    assert found["val/agree_purified"] == 1


def test_consistency__keeps_predictions_together_that_the_distance_alone_parts(
    classifier_file, purifier_file, tmp_path
):
    found = [
        fit(
            CollageFinetuning(
                classifier_file, weights=purifier_file, side=64, attack=ATTACK, consistency=weight,
                optimization=Optimization(base_lr=0.02),
            ),
            tmp_path,
            epochs=16,
        )
        for weight in (0.0, 1.0)
    ]  # fmt: skip
    assert found[1]["train/consistency"] < found[0]["train/consistency"] / 3
    assert found[1]["val/purification_loss"] < 1.3 * found[0]["val/purification_loss"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"side": 60}, "tiles of 32 pixels, which do not fill a side of 60"),
        ({"side": 16}, "tiles of 32 pixels, which do not fill a side of 16"),
        ({"consistency": -1.0}, "consistency is a weight, 0 or more, not -1.0"),
        ({"guidance": 0.1}, r"guidance = 0.1 is the weight of the layers in guides = \[\]: set both or none"),
        ({"guides": ["layer2"]}, "guidance = 0.0 is the weight of the layers in .*: set both or none"),
        ({"guides": ["layer9"], "guidance": 0.1}, "no layer 'layer9'; did you mean .*layer"),
        ({"guidance": -1.0}, "guidance is a weight, 0 or more, not -1.0"),
        ({"clean_fraction": 2.0}, "clean_fraction is a share"),
        ({"noise": 18.0}, "noise is a standard deviation"),
        ({"attack": replace(ATTACK, refresh=5)}, "set attack.refresh to 1"),
    ],
)
def test_settings__that_cannot_be_meant_are_refused(classifier_file, options, message):
    with pytest.raises(ValueError, match=message):
        CollageFinetuning(classifier_file, overrides=SMALL, **options)


def test_fit__refuses_batches_that_fill_no_collage(classifier_file, tmp_path):
    with pytest.raises(ValueError, match="3 images do not fill a collage of 2 x 2: it takes a batch of 4"):
        fit(CollageFinetuning(classifier_file, overrides=SMALL, side=64), tmp_path, batch_size=3)


@pytest.mark.parametrize(("fewest", "judged"), [(4, True), (3, False)])
def test_validation__leaves_out_what_fills_no_collage_in_another_process(
    classifier_file, tmp_path, monkeypatch, fewest, judged
):
    """Batches of 10 in this process, and of `fewest` in another, at collages of 4."""
    told = []

    def reduce(self, tensor, *args, reduce_op="mean", **options):
        told.append((int(tensor), reduce_op))
        return tensor.clamp(max=fewest)

    monkeypatch.setattr(SingleDeviceStrategy, "reduce", reduce)
    metrics = fit(CollageFinetuning(classifier_file, overrides=SMALL, side=64, attack=ATTACK), tmp_path)
    assert (10, "min") in told
    assert ("val/purification_loss" in metrics) == judged


def test_pairs__of_diverse_inputs_are_those_of_the_attack_that_is_measured(classifier_file):
    classifier, images, labels = load_classifier(classifier_file), torch.rand(4, 3, 32, 32), torch.arange(4)
    pairs = PairAttack("di-mi-fgsm", Epsilon("8/255"), step_size=Epsilon(0.1 * 8 / 255), steps=10, bf16=False)
    found, expected = (
        attack(classifier, images, labels, torch.Generator().manual_seed(3))
        for attack in (pairs, lambda *given: simple_attack(*given[:3], "di-mi-fgsm", 8 / 255, generator=given[3]))
    )
    torch.testing.assert_close(found, expected)


def test_fit__refuses_guides_that_the_classifier_does_not_run(classifier_file, tmp_path):
    task = CollageFinetuning(classifier_file, overrides=SMALL, side=64, guidance=0.1, guides=["layer2"])
    task.classifier.layer2 = nn.Identity()
    task.classifier.forward = lambda images: images.mean((2, 3))
    with pytest.raises(ValueError, match="run without its layers layer2: name others as guides"):
        fit(task, tmp_path)
