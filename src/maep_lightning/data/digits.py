"""scikit-learn's embedded handwritten digits, the real data set that needs no download."""

from pathlib import Path

import torch
import torch.nn.functional as F

from maep_lightning.data.registry import DatasetSpec, LabelledImages, Split, register
from maep_lightning.data.splits import balanced_order

_TEST_SIZE = 397
_SPLIT_SEED = 0


def load_digits_32(split: Split, root: Path, download: bool) -> LabelledImages:
    """Read the 1,797 digits of `sklearn.datasets.load_digits`, 8x8 grey levels brought to 32x32 RGB bilinearly.

    The set has no published split: 397 class-balanced images chosen by a fixed seed are the test split. The same
    writers appear in both.

    Args:
        split: `train` (1,400 images) or `test` (397).
        root: Not used; the images come with scikit-learn.
        download: Not used.

    Returns:
        Images and labels; every prefix is class-balanced.
    """
    # Importing scikit-learn takes as long as torch does, and only this set needs it.
    from sklearn.datasets import load_digits

    bunch = load_digits()
    grey = torch.tensor(bunch.images, dtype=torch.float32).unsqueeze(1) / 16
    large = F.interpolate(grey, size=(32, 32), mode="bilinear", align_corners=False)
    images = (large * 255).round().to(torch.uint8).expand(-1, 3, -1, -1)
    labels = torch.tensor(bunch.target, dtype=torch.int64)
    order = balanced_order(labels, seed=_SPLIT_SEED)
    chosen = order[:_TEST_SIZE] if split == "test" else order[_TEST_SIZE:]
    return LabelledImages(images[chosen], labels[chosen])


DIGITS = register(
    DatasetSpec(
        name="digits",
        image_size=32,
        class_names=tuple("0123456789"),
        licence="CC BY 4.0 (UCI, Optical Recognition of Handwritten Digits)",
        how_to_get="It comes with scikit-learn.",
        loader=load_digits_32,
        val_size=200,
        flip=False,
        crop_padding=2,
    )
)
