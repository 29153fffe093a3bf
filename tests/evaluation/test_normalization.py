import os
import re
from pathlib import Path

import pytest
import torch
from torch import nn

from maep_lightning.data import ImageDataModule
from maep_lightning.evaluation.normalization import check_normalization
from maep_lightning.models.classifiers import load_classifier
from maep_lightning.models.preprocessing import NORMALIZATIONS, NormalizedClassifier, ResizedClassifier


class Bins(nn.Module):
    """Tells ten levels of brightness apart, at the scale of the normalisation it was made for."""

    def __init__(self, norm):
        super().__init__()
        mean, std = (torch.tensor(values).mean() for values in NORMALIZATIONS[norm])
        levels = torch.linspace(0.05, 0.95, 10)
        self.register_buffer("levels", (levels - mean) / std)

    def forward(self, images):
        return -(images.mean(dim=(1, 2, 3))[:, None] - self.levels).abs()


def levels(n, dtype=torch.float32):
    labels = torch.arange(n) % 10
    images = (0.05 + 0.1 * labels.float()).view(-1, 1, 1, 1).expand(-1, 3, 4, 4)
    return (images * 255).round().to(dtype) if dtype == torch.uint8 else images, labels


@pytest.mark.parametrize("dtype", [torch.float32, torch.uint8])
@pytest.mark.parametrize("true", ["none", "half", "imagenet", "255"])
def test_check__names_the_normalisation_that_was_trained_with(true, dtype):
    images, labels = levels(64, dtype)
    for declared in ("none", "half", "imagenet", "255"):
        classifier = NormalizedClassifier(Bins(true), *NORMALIZATIONS[declared])
        found = check_normalization(classifier, images, labels)
        assert found.n == 64
        assert found.correct[true] == 64
        if declared == true:
            assert (found.better, found.warnings, found.declared) == (None, (), 64)
        else:
            assert found.better == true
            assert f"Add norm={true} to classifier_name (in a transfer study: name), or" in found.warnings[0]
            assert found.warnings[0].endswith("that begins with timm:, torchvision: or python:.")


def test_check__foreign_code_is_taken_to_want_unit_range():
    images, labels = levels(64)
    assert check_normalization(Bins("none"), images, labels).better is None
    assert check_normalization(Bins("half"), images, labels).better == "half"


def test_check__counts_what_the_classifier_itself_gets_right():
    torch.manual_seed(0)
    images, labels = torch.rand(40, 3, 4, 4), torch.randint(0, 3, (40,))
    classifier = NormalizedClassifier(nn.Sequential(nn.Flatten(), nn.Linear(48, 3)), *NORMALIZATIONS["cifar10"])
    found = check_normalization(classifier, images, labels, batch_size=7)
    assert found.declared == int((classifier(images).argmax(1) == labels).sum())
    mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in NORMALIZATIONS["half"])
    assert found.correct["half"] == int((classifier.network((images - mean) / std).argmax(1) == labels).sum())


def mixed(n, told):
    """Images of which Bins("half") gets all right behind `half`, and but for `told` of them as it is."""
    labels = torch.full((n,), 9)
    labels[:told] = 3
    return (0.05 + 0.1 * labels.float()).view(-1, 1, 1, 1).expand(-1, 3, 4, 4), labels


@pytest.mark.parametrize(
    ("told", "sample", "better", "warned"),
    [
        (6, mixed(1024, 96), "half", "right on 928 of 1024 .* trained with that. Add norm=half"),
        (6, mixed(1024, 6), None, r"1018 of 1024 .* and on 1024 behind norm=half; not significant \(p = 0\.016\)"),
        (6, mixed(1024, 2), None, None),
        (6, mixed(64, 64), None, "58 of 64 .* and on 64 behind norm=half; not significant"),  # no more than before
        (6, None, None, "58 of 64 .* and on 64 behind norm=half; not significant"),
        (3, "not asked for", None, None),
        (12, "not asked for", "half", "52 of 64"),
    ],
)
def test_check__looks_at_more_images_where_some_leave_it_open(told, sample, better, warned):
    more = None if sample is None else lambda: pytest.fail("asked") if isinstance(sample, str) else sample
    found = check_normalization(Bins("half"), *mixed(64, told), more=more)
    assert found.better == better
    assert len(found.warnings) == bool(warned)
    if warned:
        assert re.search(warned, found.warnings[0])


REAL = Path(os.environ.get("MAEP_DATA_DIR", "nowhere"))


@pytest.mark.parametrize("n", [256, 1024])
def test_real_network__trained_with_that_of_imagenet_is_told_from_half(n):
    name = "cifar10_akamaster_resnet20"
    if not (REAL / "cifar-10-batches-py").is_dir() or not (REAL / "weights" / f"{name}.pth").is_file():
        pytest.skip("MAEP_DATA_DIR does not hold CIFAR-10 and this file")
    data = ImageDataModule("cifar10", str(REAL))
    classifier = load_classifier(name, "norm=half")
    found = check_normalization(classifier, *data.test_sample(n), more=lambda: data.test_sample(1024))
    assert found.better == "imagenet"
    right = check_normalization(load_classifier(name), *data.test_sample(n), more=lambda: data.test_sample(1024))
    assert (right.better, right.warnings) == (None, ())


def test_check__says_that_classes_are_in_another_order():
    images, labels = levels(60)
    found = check_normalization(NormalizedClassifier(Bins("none"), *NORMALIZATIONS["none"]), images, (labels + 5) % 10)
    assert found.better is None
    assert "no better than guessing among 10 classes" in found.warnings[0]
    assert "labels (up to 9) in its order" in found.warnings[0]


def test_check__a_handful_of_images_proves_nothing():
    images, labels = levels(10)
    assert check_normalization(Bins("half"), images, (labels + 5) % 10).warnings == ()


def test_check__says_that_images_are_much_smaller_than_those_of_training():
    images, labels = levels(32)
    classifier = NormalizedClassifier(Bins("none"), *NORMALIZATIONS["none"], trained_size=16)
    (warning,) = check_normalization(classifier, images, labels).warnings
    assert "trained on images of 16 pixels and gets 4: add size=16" in warning
    assert check_normalization(ResizedClassifier(classifier, 16), images, labels).warnings == ()


class Returns(nn.Module):
    def __init__(self, change):
        super().__init__()
        self.bins, self.change = Bins("none"), change

    def forward(self, images):
        return self.change(self.bins(images))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda logits: (logits, logits), r"must return logits \(B, K\), not a tuple"),
        (lambda logits: {"logits": logits}, "not a dict"),
        (lambda logits: logits.numpy(), "not a ndarray"),
        (lambda logits: None, "not a NoneType"),
        (lambda logits: logits.argmax(1), r"K >= 2, not a tensor \(64,\)"),
    ],
)
def test_check__says_what_a_classifier_must_return(change, message):
    with pytest.raises(ValueError, match=message):
        check_normalization(Returns(change), *levels(64))


def test_check__refuses_another_precision_by_name():
    network = nn.Sequential(nn.Flatten(), nn.Linear(48, 10)).double()
    with pytest.raises(ValueError, match=r"1\.weight is torch\.float64: .* call \.float\(\)"):
        check_normalization(network, *levels(64))
