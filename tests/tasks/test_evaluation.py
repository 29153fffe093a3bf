"""The options of a purifier at test time: through the task, `lightning test`, the report and `maep verify`."""

import json
import warnings

import pytest
import torch
from lightning.pytorch import Trainer

from maep_lightning.attacks.threat import Epsilon
from maep_lightning.callbacks import AutoAttackCallback
from maep_lightning.cli import main
from maep_lightning.data import ImageDataModule
from maep_lightning.models.classifiers import create_classifier, load_classifier, save_classifier
from maep_lightning.models.defended import DefendedClassifier
from maep_lightning.models.purifier import Purifier
from maep_lightning.models.registry import create_purifier
from maep_lightning.models.repeated import RepeatedPurifier
from maep_lightning.tasks import PurifierEvaluation

SMALL = {"width": 16, "depth": 1, "heads": 2, "decoder_width": 16, "decoder_heads": 2, "refine_width": 8}
VOTE = {"mask_ratio": 0.5, "masks": 2, "aggregate": "vote", "passes": 2}


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("files")
    torch.manual_seed(0)
    save_classifier(create_classifier("resnet8", 10), folder / "classifier.safetensors", "resnet8", 10)
    create_purifier("maep_conv_patch4_32", residual=False, **SMALL).save_pretrained(folder / "p.safetensors")
    return str(folder / "classifier.safetensors"), str(folder / "p.safetensors")


def test_defaults__are_the_purifier_itself(files):
    assert type(PurifierEvaluation(*files).purifier) is Purifier


@pytest.mark.parametrize("name", VOTE)
def test_options__each_is_heard(files, name):
    """The same draws with one option changed: other logits."""
    images = torch.rand(3, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    other = VOTE | {"mask_ratio": {"mask_ratio": 0.25}, "masks": {"masks": 3}, "aggregate": {"aggregate": "mean"},
                    "passes": {"passes": 1}}[name]  # fmt: skip
    logits = []
    for options in (VOTE, other):
        task = PurifierEvaluation(*files, **options).eval()
        torch.manual_seed(0)
        with torch.no_grad():
            logits.append(DefendedClassifier(task.purifier, task.classifier)(images))
    assert not torch.allclose(*(each.softmax(1) for each in logits), atol=1e-6)


def test_test_step__counts_what_the_vote_says(files):
    task = PurifierEvaluation(*files, **VOTE).eval()
    images = torch.rand(8, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    defended = DefendedClassifier(
        RepeatedPurifier(Purifier.from_pretrained(files[1]), **VOTE), load_classifier(files[0])
    )
    logged = {}
    task.log = lambda name, metric, **options: logged.update({name: float(metric.compute())})
    with torch.no_grad():
        torch.manual_seed(0)
        labels = defended(images).argmax(1)
        labels[:3] = (labels[:3] + 1) % 10
        torch.manual_seed(0)
        task.test_step((images, labels), 0)
    assert logged["test/acc_purified"] == 5 / 8


def test_predict_step__writes_one_image_of_several_masks_and_none_of_a_vote(files):
    images = torch.rand(2, 3, 32, 32)
    task = PurifierEvaluation(None, files[1], **(VOTE | {"aggregate": "mean"})).eval()
    assert task.predict_step((images,), 0).shape == images.shape
    with pytest.raises(ValueError, match="aggregate mean"):
        PurifierEvaluation(None, files[1], **VOTE).predict_step((images,), 0)


def test_options__need_a_purifier(files):
    with pytest.raises(ValueError, match="masks, passes are options of a purifier"):
        PurifierEvaluation(files[0], masks=2, passes=2)


def test_callback__stochastic_purifier_from_the_task_to_verify(files, tmp_path, capsys):
    budget = {"apgd_steps": 2, "fab_steps": 1, "square_queries": 2, "targets": 1}
    budget |= {"eot_draws": 2, "eot_steps": 3, "judge_draws": 5}
    callback = AutoAttackCallback(
        eps=Epsilon("32/255"), threats=["none", "bpda", "eot", "fixed_coins"], chunk_size=3, sanity=1, **budget
    )
    options = {"accelerator": "cpu", "logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    trainer = Trainer(default_root_dir=tmp_path, callbacks=[callback], **options)
    task = PurifierEvaluation(*files, **VOTE)
    trainer.test(task, datamodule=ImageDataModule("digits", test_limit=5), verbose=False)
    results = callback.results
    assert results.plan.eot_draws == 2
    assert results.row("eot")["attack"].endswith("PGD-3 x EOT-2, judged by the majority of 5 fresh draws")
    readings = results.row("eot")["readings"]
    for name in ("mean_draw", "any_of_m"):
        assert float(trainer.callback_metrics[f"robust/eot/Linf_32-255/{name}"]) == pytest.approx(readings[name])
    assert "(mask_ratio=0.5, masks=2, aggregate=vote, passes=2)" in (tmp_path / "autoattack" / "report.md").read_text()
    sources = json.loads((tmp_path / "autoattack" / "sources.json").read_text())
    assert sources["repeats"] == VOTE
    main(["verify", str(tmp_path)])
    assert "verified" in capsys.readouterr().out
    sources["repeats"]["masks"] = 3
    (tmp_path / "autoattack" / "sources.json").write_text(json.dumps(sources))
    with pytest.raises(SystemExit):
        main(["verify", str(tmp_path)])
    assert "purifier_architecture: not what was evaluated" in capsys.readouterr().err


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


def test_policy__is_not_combined_with_several_masks():
    with pytest.raises(ValueError, match="policy tile and masks, passes cannot be combined"):
        PurifierEvaluation(purifier=NAME, policy="tile", masks=2, passes=2)


NEAREST = """
import torch
from maep_lightning.data import ImageDataModule

images, labels = ImageDataModule("digits").train_set()
MEANS = torch.stack([images[labels == k].float().mean(0).flatten() for k in range(10)])

def classify(images):
    return -torch.cdist(images.flatten(1), MEANS)  # of pixels from 0 to 255
"""


@pytest.mark.parametrize(("norm", "warned"), [("imagenet", True), ("255", False)])
def test_test__says_that_the_normalisation_is_wrong_and_what_to_do(tmp_path, monkeypatch, norm, warned):
    (tmp_path / "nearest_mean.py").write_text(NEAREST)
    monkeypatch.syspath_prepend(tmp_path)
    command = [
        "test",
        "--model",
        "PurifierEvaluation",
        "--model.classifier",
        f"python:nearest_mean:classify,norm={norm}",
    ]
    command += ["--data", "ImageDataModule", "--data.test_limit", "100", "--trainer.accelerator", "cpu"]
    command += ["--trainer.logger", "false", "--trainer.default_root_dir", str(tmp_path)]
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        main(command)
    assert any("Add norm=255 to classifier_name" in str(warning.message) for warning in caught) == warned


WIDTHS = """
import torch

def logits(classes):
    return lambda images: torch.arange(float(classes)).expand(len(images), -1) + images.mean((1, 2, 3))[:, None]

def fewer():
    return logits(7)

def more():
    return logits(20)
"""


def test_test__compares_the_classifier_s_width_with_the_data_before_the_test_pass(tmp_path, monkeypatch):
    (tmp_path / "widths.py").write_text(WIDTHS)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(PurifierEvaluation, "test_step", lambda *args: pytest.fail("the test pass began"))
    options = {"accelerator": "cpu", "logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    trainer = Trainer(default_root_dir=tmp_path, **options)
    data = ImageDataModule("digits", test_limit=5)
    with pytest.raises(ValueError, match="7 logits, and the data have 10 classes"):
        trainer.test(PurifierEvaluation("python:widths:fewer"), datamodule=data)
    monkeypatch.setattr(PurifierEvaluation, "test_step", lambda *args: None)
    with pytest.warns(UserWarning, match="20 logits, and the data have 10 classes"):
        trainer.test(PurifierEvaluation("python:widths:more", check=0), datamodule=data)


@pytest.mark.parametrize("check", [256, 0])
def test_test__says_that_files_are_cropped_otherwise_than_the_weights_want(files, framed, tmp_path, check):
    folder, classifier = framed
    task = PurifierEvaluation(files[0], check=check)
    task.classifier = classifier
    options = {"accelerator": "cpu", "logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    trainer = Trainer(default_root_dir=tmp_path, **options)
    data = ImageDataModule("folder", folder=folder, image_size=32, interpolation="bicubic")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        trainer.test(task, datamodule=data, verbose=False)
    assert any(str(each.message).endswith("give --data.crop_pct 0.95.") for each in caught) == (check > 0)


@pytest.mark.parametrize(
    ("purifier", "options", "said"),
    [
        (NAME, {}, "cifar10 (the purifier's last stage, as its file says)"),
        ("jpeg:75", {}, "not stated"),
        ("jpeg:75", {"training_data": "digits and no more"}, "digits and no more"),
    ],
)
def test_callback__states_what_the_purifier_s_file_says(files, tmp_path, purifier, options, said):
    callback = AutoAttackCallback(threats=["none"], sanity=0, **options)
    flags = {"accelerator": "cpu", "logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    trainer = Trainer(default_root_dir=tmp_path, callbacks=[callback], **flags)
    trainer.test(PurifierEvaluation(files[0], purifier), datamodule=ImageDataModule("digits", test_limit=2))
    assert f"Trained on: {said}." in (tmp_path / "autoattack" / "report.md").read_text()
