"""A folder of images as a data set of its own, named on the command line as docs/own-data.md says."""

import torch
from torchvision.datasets import ImageFolder
from torchvision.transforms.functional import pil_to_tensor

from maep_lightning.data import DatasetSpec, ImageDataModule, LabelledImages, register


def load(split, root, download):
    folder = ImageFolder(root / split)
    images, labels = zip(*((pil_to_tensor(image), label) for image, label in folder), strict=True)
    return LabelledImages(torch.stack(images), torch.tensor(labels))


register(
    DatasetSpec(
        name="two-sides",
        image_size=224,
        class_names=("left", "right"),
        licence="none",
        how_to_get="The test makes it.",
        loader=load,
        val_size=6,
    )
)


class FolderDataModule(ImageDataModule):
    """Named on the command line, so that this file is imported."""
