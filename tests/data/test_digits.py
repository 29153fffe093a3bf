import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_digits

from maep_lightning.data.digits import DIGITS


@pytest.fixture(scope="module")
def splits(tmp_path_factory):
    folder = tmp_path_factory.mktemp("unused")
    return {split: DIGITS.load(split, folder, False) for split in ("train", "test")}


def fingerprints(images):
    return [image.numpy().tobytes() for image in images]


def test_splits_share_no_image_and_miss_none(splits):
    train, test = fingerprints(splits["train"].images), fingerprints(splits["test"].images)
    assert (len(train), len(test)) == (1400, 397)
    assert not set(train) & set(test)


def test_classes_are_balanced(splits):
    whole = torch.bincount(torch.tensor(load_digits().target)).double()
    for split in splits.values():
        share = torch.bincount(split.labels, minlength=10).double()
        assert (share - whole * len(split.labels) / 1797).abs().max() <= 1


def test_upscaling_is_bilinear(splits):
    bunch = load_digits()
    by_label = {label: [] for label in range(10)}
    for image, label in zip(bunch.images, bunch.target, strict=True):
        grey = Image.fromarray((image / 16 * 255).astype(np.float32))
        by_label[int(label)].append(np.asarray(grey.resize((32, 32), Image.Resampling.BILINEAR)))
    for image, label in zip(splits["test"].images[:20], splits["test"].labels[:20], strict=True):
        assert torch.equal(image[0], image[1])
        assert torch.equal(image[0], image[2])
        distance = np.abs(np.stack(by_label[int(label)]) - image[0].numpy().astype(np.float32)).max(axis=(1, 2))
        assert distance.min() <= 1


def test_mirroring_is_not_offered():
    assert not DIGITS.flip
