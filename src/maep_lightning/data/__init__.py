"""Image data sets as uint8 tensors or files, and the DataModule over them. Only `ImageDataModule` imports Lightning."""

from typing import TYPE_CHECKING, Any

from maep_lightning.data.cifar import CIFAR10, CIFAR100
from maep_lightning.data.digits import DIGITS
from maep_lightning.data.imagenet import IMAGENET, IMAGENETTE, TINY_IMAGENET
from maep_lightning.data.layouts import FolderLoader
from maep_lightning.data.registry import DatasetSpec, ImageFiles, LabelledImages, get_spec, known_names, register
from maep_lightning.data.source import FOLDER, ImageSource

if TYPE_CHECKING:
    from maep_lightning.data.datamodule import ImageDataModule

SHIPPED = frozenset(known_names())
"""Names of the data sets that come with the package; others are registered by whoever has them."""

__all__ = [
    "CIFAR10",
    "CIFAR100",
    "DIGITS",
    "FOLDER",
    "IMAGENET",
    "IMAGENETTE",
    "SHIPPED",
    "TINY_IMAGENET",
    "DatasetSpec",
    "FolderLoader",
    "ImageDataModule",
    "ImageFiles",
    "ImageSource",
    "LabelledImages",
    "get_spec",
    "known_names",
    "register",
]


def __getattr__(name: str) -> Any:
    if name == "ImageDataModule":
        from maep_lightning.data.datamodule import ImageDataModule

        return ImageDataModule
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
