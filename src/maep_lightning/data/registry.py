"""What is known of each data set, by name."""

from collections.abc import Callable
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Literal, NamedTuple

import torch
from torch import Tensor

Split = Literal["train", "test"]


class LabelledImages(NamedTuple):
    """Images and their classes, in a fixed order.

    Attributes:
        images: `(N, 3, H, W)` uint8.
        labels: `(N,)` int64.
    """

    images: Tensor
    labels: Tensor

    def take(self, indices: Tensor | slice) -> "LabelledImages":
        """The rows named by `indices`, in that order."""
        return LabelledImages(self.images[indices], self.labels[indices])


@dataclass(frozen=True)
class DatasetSpec:
    """A data set: what it holds, how it may be augmented, and how to read it.

    Attributes:
        name: The name written in configs.
        image_size: Height and width in pixels.
        class_names: One name a class, in label order.
        licence: Terms of use.
        how_to_get: What to do when it is missing.
        loader: `(split, root, download)` to the whole split in its published order.
        val_size: Training images held out for validation unless told otherwise.
        flip: Whether a mirrored image keeps its class.
        crop_padding: Pixels that a training crop may move each way; 0 for none.
    """

    name: str
    image_size: int
    class_names: tuple[str, ...]
    licence: str
    how_to_get: str
    loader: Callable[[Split, Path, bool], LabelledImages]
    val_size: int
    flip: bool = True
    crop_padding: int = 4

    @property
    def num_classes(self) -> int:
        """Number of classes."""
        return len(self.class_names)

    def load(self, split: Split, root: Path, download: bool) -> LabelledImages:
        """Read one split.

        Args:
            split: `train` or `test`, as published.
            root: Folder that holds data sets.
            download: Whether a missing set may be fetched.

        Returns:
            All images of the split, in a fixed order.

        Raises:
            FileNotFoundError: If the files are missing and may not, or cannot, be fetched.
            ValueError: If files are damaged, or the loader returns another layout than the spec promises.
        """
        images, labels = self.loader(split, root, download)
        expected = (len(labels), 3, self.image_size, self.image_size)
        if images.dtype != torch.uint8 or tuple(images.shape) != expected:
            raise ValueError(
                f"The loader of {self.name} returned {images.dtype} images of shape {tuple(images.shape)}; "
                f"torch.uint8 of shape {expected} is needed."
            )
        if labels.dtype != torch.int64 or len(labels) == 0 or not 0 <= labels.min() <= labels.max() < self.num_classes:
            raise ValueError(f"The loader of {self.name} must return int64 labels from 0 to {self.num_classes - 1}.")
        return LabelledImages(images, labels)


_SPECS: dict[str, DatasetSpec] = {}


def register(spec: DatasetSpec) -> DatasetSpec:
    """Make a data set known under its name.

    Args:
        spec: The data set.

    Returns:
        The same spec.

    Raises:
        ValueError: If another data set has that name.
    """
    if spec.name in _SPECS and _SPECS[spec.name] is not spec:
        raise ValueError(f"A data set named {spec.name!r} is registered already.")
    _SPECS[spec.name] = spec
    return spec


def known_names() -> list[str]:
    """Names of the registered data sets, sorted."""
    return sorted(_SPECS)


def get_spec(name: str) -> DatasetSpec:
    """Look a data set up.

    Args:
        name: A registered name, such as `cifar10`.

    Returns:
        Its spec.

    Raises:
        ValueError: If the name is not registered.
    """
    if name in _SPECS:
        return _SPECS[name]
    plain = name.lower().replace("-", "").replace("_", "")
    close = get_close_matches(plain, known_names(), n=1)
    hint = f" Did you mean {close[0]!r}?" if close else ""
    raise ValueError(f"There is no data set {name!r}; known: {', '.join(known_names())}.{hint}")
