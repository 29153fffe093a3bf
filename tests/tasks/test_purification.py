import copy
import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import nn

from maep_lightning.attacks.threat import Epsilon
from maep_lightning.callbacks import ExportWeights
from maep_lightning.data import ImageDataModule
from maep_lightning.models.classifiers import create_classifier, save_classifier
from maep_lightning.models.purifier import Purifier
from maep_lightning.models.registry import create_purifier, load_purifier
from maep_lightning.tasks import PurifierEvaluation, PurifierFinetuning
from maep_lightning.tasks.base import Optimization
from maep_lightning.tasks.defence import LoRA
from maep_lightning.tasks.pairs import PairAttack

SMALL = {
    "width": 16, "depth": 1, "heads": 2, "decoder_width": 16, "decoder_heads": 2, "refine_depth": 2, "refine_width": 8
}  # fmt: skip


@pytest.fixture
def classifier_file(tmp_path):
    torch.manual_seed(0)
    save_classifier(create_classifier("resnet8", 10), tmp_path / "classifier.safetensors", "resnet8", 10)
    return str(tmp_path / "classifier.safetensors")


def attack(**options):
    return PairAttack(**{"eps": Epsilon("16/255"), "step_size": Epsilon("8/255"), "steps": 2, "bf16": False, **options})


def run(task, tmp_path, epochs=1, augment=False, flip=False, callbacks=(), ckpt_path=None, **options):
    data = ImageDataModule("digits", batch_size=32, train_limit=96, val_size=20, augment=augment)
    data.spec = replace(data.spec, flip=flip)
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
def test_losses__b_is_the_distance_to_the_clean_image(classifier_file, kind, power):
    task = PurifierFinetuning(classifier_file, overrides=SMALL, loss=kind)  # fresh residual network: the identity
    attacked, clean = torch.rand(2, 4, 3, 32, 32)
    terms, _ = task.losses(attacked, clean)
    assert terms.keys() == {"purification_loss"}
    expected = (attacked - clean).abs().pow(power).mean()
    torch.testing.assert_close(terms["purification_loss"], expected, atol=1e-6, rtol=1e-5)


def by_patch(images):
    """`(B, 3, 32, 32)` to `(B, 8, 8)`, means over the 4x4 patches and the channels."""
    return torch.nn.functional.avg_pool2d(images.mean(1, keepdim=True), 4).squeeze(1)


@pytest.mark.parametrize("objective", ["A", "C"])
def test_losses__joint_objectives_are_their_formulas_by_hand(classifier_file, purifier_file, objective):
    task = PurifierFinetuning(classifier_file, weights=purifier_file, objective=objective, mask_ratio=0.75)
    attacked, clean = torch.rand(2, 4, 3, 32, 32)
    with torch.no_grad():
        torch.manual_seed(5)
        terms, purified = task.losses(attacked, clean)
        torch.manual_seed(5)
        on_attacked = task.purifier.mae(attacked, 0.75)
        on_clean = task.purifier.mae(clean, 0.75)
    torch.testing.assert_close(purified, on_attacked.images)
    distance = by_patch((on_attacked.images - clean).abs())
    visible = 1 - on_attacked.mask.view(4, 8, 8)
    masked_pass = on_clean if objective == "A" else on_attacked
    # What the decoder says, before the refinement, against the normalised clean image: mean 0.5 and deviation 0.25.
    said = masked_pass.patches.view(4, 8, 8, 4, 4, 3).permute(0, 5, 1, 3, 2, 4).reshape(4, 3, 32, 32)
    error = by_patch((said - (clean - 0.5) / 0.25).square())
    removed = masked_pass.mask.view(4, 8, 8)
    expected = {
        "purification_loss": distance.mean() if objective == "A" else (distance * visible).sum() / visible.sum(),
        "masked_loss": (error * removed).sum() / removed.sum(),
    }
    assert terms.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(terms[name], value)


@pytest.mark.parametrize("objective", ["A", "B", "C"])
def test_trade_off__weighs_the_pixel_distance(classifier_file, tmp_path, objective):
    options = {} if objective == "B" else {"trade_off": 3.0}
    task = PurifierFinetuning(
        classifier_file, overrides=SMALL, objective=objective, mask_ratio=0.5, attack=attack(steps=0), **options
    )
    found = run(task, tmp_path).callback_metrics
    expected = options.get("trade_off", 1.0) * found["train/purification_loss"] + found.get("train/masked_loss", 0.0)
    torch.testing.assert_close(found["train/loss"], expected)


def test_objective__that_would_ignore_an_option_is_refused(classifier_file):
    with pytest.raises(ValueError, match="mask_ratio above 0"):
        PurifierFinetuning(classifier_file, objective="C")
    with pytest.raises(ValueError, match="needs A or C"):
        PurifierFinetuning(classifier_file, trade_off=0.5)
    with pytest.raises(ValueError, match="one of A, B, C"):
        PurifierFinetuning(classifier_file, objective="two_stage")


@pytest.mark.parametrize(("start", "end"), [(0.0, 5.0), (5.0, 5.0), (2.0, 0.0)])
def test_consistency__goes_linearly_from_its_start_to_its_end(classifier_file, tmp_path, start, end):
    torch.manual_seed(0)
    task = PurifierFinetuning(
        classifier_file, overrides=SMALL, consistency=end, consistency_start=start, attack=attack(steps=0)
    )
    found = run(task, tmp_path, epochs=2).callback_metrics
    added = found["train/loss"] - found["train/purification_loss"]
    # the last of 6 steps: 5/6 of the way
    weight = start + (end - start) * 5 / 6
    torch.testing.assert_close(added, weight * found["train/consistency"], rtol=1e-4, atol=1e-6)


def test_consistency__costs_nothing_where_it_has_no_weight(classifier_file, tmp_path):
    task = PurifierFinetuning(classifier_file, overrides=SMALL, attack=attack(steps=0))
    assert "train/consistency" not in run(task, tmp_path).callback_metrics


def test_clean_fraction__one_trains_on_clean_pairs_alone(classifier_file, tmp_path):
    task = PurifierFinetuning(classifier_file, overrides=SMALL, clean_fraction=1.0, attack=attack())
    metrics = run(task, tmp_path).callback_metrics
    # the fresh residual network is the identity, so clean pairs leave nothing to learn
    assert metrics["train/purification_loss"] < 1e-3


def test_pairs__are_mirrored_alike_where_the_data_set_allows_it(classifier_file, tmp_path):
    task = PurifierFinetuning(classifier_file, overrides=SMALL, attack=attack())
    seen = []
    task.losses = lambda given, clean: seen.append((given, clean)) or PurifierFinetuning.losses(task, given, clean)
    data = run(task, tmp_path, flip=True).datamodule
    known = {image.numpy().tobytes() for image in data.train_set().images.float() / 255}
    turned = [image.flip(-1) for _, clean in seen for image in clean if image.numpy().tobytes() not in known]
    assert 20 < len(turned) < 76
    assert all(image.numpy().tobytes() in known for image in turned)
    assert all((given - clean).abs().max() <= 16 / 255 + 1e-6 for given, clean in seen)


def test_noise__is_added_to_the_input_and_not_to_the_target(classifier_file, tmp_path):
    task = PurifierFinetuning(classifier_file, overrides=SMALL, clean_fraction=1.0, noise=0.2, attack=attack())
    seen = []
    task.losses = lambda given, clean: seen.append((given, clean)) or PurifierFinetuning.losses(task, given, clean)
    data = run(task, tmp_path).datamodule
    images = {image.numpy().tobytes() for image in data.train_set().images.float() / 255}
    assert all(image.numpy().tobytes() in images for _, clean in seen for image in clean)
    # On black pixels half of the noise is cut off, which leaves a mean of 0.4 standard deviations.
    pairs = [(given, clean) for batch in seen for given, clean in zip(*batch, strict=True)]
    deviations = torch.stack([given[clean == 0].mean() for given, clean in pairs]) * math.sqrt(2 * math.pi)
    assert deviations.max() < 0.21
    assert deviations.min() < 0.02
    assert deviations.mean() == pytest.approx(0.1, abs=0.02)


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ({"noise": 18}, r"on the \[0, 1\] scale, such as 0.1, not 18"),
        ({"clean_fraction": 25}, "a share of each batch"),
        ({"clean_fraction": -1}, "a share of each batch"),
        ({"consistency": -0.1}, "must not be negative"),
        ({"consistency_start": -0.1}, "must not be negative"),
        ({"objective": "A", "mask_ratio": 0.5, "trade_off": -1}, "must not be negative"),
    ],
)
def test_settings__that_are_out_of_range_are_refused(classifier_file, option, message):
    with pytest.raises(ValueError, match=message):
        PurifierFinetuning(classifier_file, overrides=SMALL, **option)


def test_lora__of_no_scale_is_refused():
    with pytest.raises(ValueError, match="learn nothing"):
        LoRA(alpha=0)


def test_refresh__keeps_attacked_images_for_the_epochs_asked_for(classifier_file, tmp_path, monkeypatch):
    counts = {}
    for refresh in (1, 2, 0):
        task = PurifierFinetuning(classifier_file, overrides=SMALL, attack=attack(refresh=refresh, steps=1))
        seen, attacked = [], task.attacked

        def counted(images, labels, attacked=attacked, seen=seen):
            seen.append(len(images))
            return attacked(images, labels)

        monkeypatch.setattr(task, "attacked", counted)
        run(task, tmp_path, epochs=4, limit_val_batches=0)
        counts[refresh] = sum(seen)
    assert counts == {1: 4 * 96, 2: 2 * 96, 0: 96}


def test_refresh__refuses_images_that_change_between_epochs(classifier_file, tmp_path):
    task = PurifierFinetuning(classifier_file, overrides=SMALL, attack=attack(refresh=2))
    with pytest.raises(ValueError, match=r"data\.init_args\.augment to false"):
        run(task, tmp_path, augment=True)


def test_cache_dir__serves_a_run_of_another_seed_but_not_of_another_attack(classifier_file, tmp_path, monkeypatch):
    counts = []
    for seed, steps in ((0, 1), (1, 1), (1, 2)):
        torch.manual_seed(seed)
        options = attack(steps=steps, refresh=0, cache_dir=str(tmp_path / "pairs"))
        task = PurifierFinetuning(classifier_file, overrides=SMALL, attack=options)
        made = task.attacked
        counts.append(0)

        def counted(images, labels, made=made):
            counts[-1] += len(images)
            return made(images, labels)

        monkeypatch.setattr(task, "attacked", counted)
        run(task, tmp_path, epochs=2, limit_val_batches=0)
    assert counts == [96, 0, 96]
    assert len(list((tmp_path / "pairs").iterdir())) == 2


def test_surrogate__is_what_training_pairs_are_attacked_on(classifier_file, tmp_path):
    torch.manual_seed(9)
    other = str(tmp_path / "surrogate.safetensors")
    save_classifier(create_classifier("resnet8", 10), other, "resnet8", 10)
    images, labels = torch.rand(4, 3, 32, 32), torch.arange(4)
    one_step = attack(kind="fgsm")

    def pairs(classifier, surrogate=None):
        task = PurifierFinetuning(classifier, surrogate=surrogate, overrides=SMALL, attack=one_step)
        return task.attacked(images, labels), task

    on_victim, on_surrogate = pairs(classifier_file)[0], pairs(other)[0]
    assert not torch.equal(on_victim, on_surrogate)
    with_both, task = pairs(classifier_file, other)
    assert torch.equal(with_both, on_surrogate)

    saver = ModelCheckpoint(dirpath=tmp_path, save_last=True)
    found = run(task, tmp_path, callbacks=[saver]).callback_metrics
    content = torch.load(saver.last_model_path, weights_only=True)
    assert not any(name.startswith(("classifier", "surrogate")) for name in content["state_dict"])
    # What is watched is the defence of the victim, so the surrogate has no part in it.
    data = ImageDataModule("digits", val_size=20)
    images, labels = data.val_set().images.float() / 255, data.val_set().labels
    pgd10 = attack(steps=10, step_size=Epsilon("4/255"))
    purified = task.purifier(pgd10(task.classifier, images, labels, torch.Generator().manual_seed(0)))
    expected = (task.classifier(purified).argmax(1) == labels).float().mean()
    assert found["val/acc_blind_pgd"] == pytest.approx(expected.item())


def moved(task, tmp_path):
    before = copy.deepcopy(task.purifier.state_dict())
    run(task, tmp_path)
    return {name for name, value in task.purifier.state_dict().items() if not torch.equal(value, before[name])}


DEEP = {**SMALL, "refine_depth": 1, "refine_width": 4}
STRONG = {"attack": PairAttack(steps=1, bf16=False), "optimization": Optimization(base_lr=0.1, weight_decay=0.5)}


@pytest.fixture
def deep_file(tmp_path):
    torch.manual_seed(0)
    create_purifier("maep_deep_patch4_32", **DEEP).save_pretrained(tmp_path / "deep.safetensors")
    return str(tmp_path / "deep.safetensors")


def test_lora__moves_the_adapters_alone(classifier_file, deep_file, tmp_path):
    # The deep refinement has running statistics, which no optimiser moves.
    lora = LoRA(rank=2, targets=["qkv"])
    task = PurifierFinetuning(classifier_file, weights=deep_file, lora=lora, **STRONG)
    assert moved(task, tmp_path) == {f"mae.decoder_blocks.0.attn.qkv.lora_{x}" for x in "AB"}


def test_lora__has_the_rank_and_the_scale_asked_for(classifier_file, purifier_file):
    task = PurifierFinetuning(classifier_file, weights=purifier_file, lora=LoRA(rank=3, alpha=6.0))
    layer = task.mae.decoder_blocks[0].attn.proj
    nn.init.normal_(layer.lora_B)
    assert layer.lora_A.shape[0] == layer.lora_B.shape[1] == 3
    x = torch.rand(2, layer.in_features)
    update = layer(x) - F.linear(x, layer.weight, layer.bias)
    torch.testing.assert_close(update, 6 / 3 * x @ layer.lora_A.T @ layer.lora_B.T)


def test_trainable__decoder_moves_every_weight_of_it_and_nothing_else(classifier_file, deep_file, tmp_path):
    task = PurifierFinetuning(classifier_file, weights=deep_file, trainable="decoder", mask_ratio=0.5, **STRONG)
    decoder = {name for name in task.purifier.state_dict() if "decoder" in name or "mask_token" in name}
    assert len(decoder) > 10
    assert moved(task, tmp_path) == decoder


def test_trainable__together_with_lora_is_refused(classifier_file):
    with pytest.raises(ValueError, match="choose one"):
        PurifierFinetuning(classifier_file, trainable="decoder", lora=LoRA())


@pytest.mark.parametrize("part", [{"trainable": "decoder"}, {"lora": LoRA()}])
def test_parts__of_a_purifier_that_nobody_trained_are_refused(classifier_file, part):
    with pytest.raises(ValueError, match="give the purifier's weights"):
        PurifierFinetuning(classifier_file, **part)


def test_overrides__must_be_those_of_the_file_that_is_started_from(classifier_file, purifier_file):
    PurifierFinetuning(classifier_file, weights=purifier_file, overrides={"refine_depth": 2})
    for overrides in ({"refine_depth": 0}, {"nonsense": 1}):
        with pytest.raises(ValueError, match=r"brings its own architecture.*leave it out"):
            PurifierFinetuning(classifier_file, weights=purifier_file, overrides=overrides)


def test_finetuning__trains_another_architecture_the_same_way(classifier_file, tmp_path):
    disco = {"shape": "disco_small", "overrides": {"width": 4, "depth": 1, "mlp_width": 8, "mlp_depth": 1}}
    task = PurifierFinetuning(classifier_file, **disco, attack=attack(steps=1))
    run(task, tmp_path, callbacks=[ExportWeights("purifier.safetensors")])
    images = torch.rand(2, 3, 32, 32)
    exported = load_purifier(tmp_path / "purifier.safetensors")
    torch.testing.assert_close(exported(images), task.purifier.eval()(images), atol=1e-6, rtol=0)
    with pytest.raises(ValueError, match="this is disco"):
        PurifierFinetuning(classifier_file, weights=str(tmp_path / "purifier.safetensors"), lora=LoRA())


def test_finetuning__weights_of_the_stage_before_are_where_it_starts(classifier_file, purifier_file):
    task = PurifierFinetuning(classifier_file, weights=purifier_file)
    expected = Purifier.from_pretrained(purifier_file).state_dict()
    assert all(torch.equal(value, expected[name]) for name, value in task.purifier.state_dict().items())


def test_checkpoint__is_plain_holds_no_surrogate_and_resumes_to_the_same_weights(classifier_file, tmp_path):
    def fresh(folder):
        torch.manual_seed(0)
        drawn = {"mask_ratio": 0.5, "clean_fraction": 0.5, "noise": 0.2, "attack": attack(steps=0)}
        task = PurifierFinetuning(classifier_file, overrides=SMALL, **drawn)
        saver = ModelCheckpoint(dirpath=folder, every_n_train_steps=2, save_top_k=-1, save_on_train_epoch_end=False)
        return task, saver

    task, saver = fresh(tmp_path / "a")
    run(task, tmp_path, epochs=2, flip=True, callbacks=[saver])
    halfway = tmp_path / "a" / "epoch=1-step=4.ckpt"
    content = torch.load(halfway, weights_only=True)
    assert content["global_step"] == 4
    assert not any(name.startswith("classifier") for name in content["state_dict"])

    again, saver = fresh(tmp_path / "b")
    run(again, tmp_path, epochs=2, flip=True, callbacks=[saver], ckpt_path=str(halfway))
    assert again.trainer.global_step == 6
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
