"""What is known of each data set, by name."""

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from importlib import import_module
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Split = Literal["train", "test"]
LabelSpace = Literal["own", "imagenet"]


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


class ImageFiles(NamedTuple):
    """Image files of any size and their classes, in a fixed order; none is decoded yet.

    Attributes:
        root: Folder that the names start from.
        names: `(N,)` encoded paths below `root`. One array, because each worker process ends up with a copy of its own
            of a list of a million strings.
        labels: `(N,)` int64.
    """

    root: Path
    names: NDArray[np.bytes_]
    labels: Tensor

    @classmethod
    def of(cls, root: Path, names: Sequence[str], labels: Sequence[int]) -> "ImageFiles":
        """From paths below `root` and the class of each."""
        return cls(root, np.array([os.fsencode(name) for name in names]), torch.tensor(labels, dtype=torch.int64))

    def take(self, indices: Tensor | slice) -> "ImageFiles":
        """The files named by `indices`, in that order."""
        rows: Any = indices if isinstance(indices, slice) else indices.numpy()
        return ImageFiles(self.root, self.names[rows], self.labels[indices])

    def path(self, index: int) -> Path:
        """Where one file lies."""
        return self.root / os.fsdecode(bytes(self.names[index]))


@dataclass(frozen=True)
class DatasetSpec:
    """A data set: what it holds, how it may be augmented, and how to read it.

    Attributes:
        name: The name written in configs.
        image_size: Native height and width in pixels; of images read from files, unless told otherwise.
        class_names: One name a class, in label order.
        licence: Terms of use.
        how_to_get: What to do when it is missing.
        loader: `(split, root, download)` to the whole split in its published order: decoded images, or the files they
            are in.
        val_size: Training images held out for validation unless told otherwise.
        flip: Whether a mirrored image keeps its class.
        crop_padding: Pixels that a training crop may move each way; 0 for none.
        crop_scale: Least and largest share of a photograph's area that a training crop takes, in place of
            `crop_padding`; None for sets of small images.
        crop_pct: Share of the resized image's side that the centre crop keeps, as timm calls it; for files only.
        class_indices: Which of ImageNet's 1000 classes each class is; None where they are others.
        label_space: How images are labelled unless told otherwise: `own`, from 0 in the order of `class_names`, or
            `imagenet`, by `class_indices`, as classifiers of ImageNet's 1000 classes need it.
        checksums: MD5 sum by archive, where they are known, for people: only what the loader fetches is checked, by the
            loader itself.
    """

    name: str
    image_size: int
    class_names: tuple[str, ...]
    licence: str
    how_to_get: str
    loader: Callable[[Split, Path, bool], LabelledImages | ImageFiles]
    val_size: int
    flip: bool = True
    crop_padding: int = 4
    crop_scale: tuple[float, float] | None = None
    crop_pct: float = 1.0
    class_indices: tuple[int, ...] | None = None
    label_space: LabelSpace = "own"
    checksums: Mapping[str, str] = field(default_factory=dict)

    @property
    def num_classes(self) -> int:
        """Number of classes."""
        return len(self.class_names)

    def load(self, split: Split, root: Path, download: bool) -> LabelledImages | ImageFiles:
        """Read one split, or find its files.

        Args:
            split: `train` or `test`, as published.
            root: Folder that holds data sets.
            download: Whether a missing set may be fetched.

        Returns:
            All images of the split, or the files they are in, in a fixed order.

        Raises:
            FileNotFoundError: If the files are missing and may not, or cannot, be fetched.
            ValueError: If files are damaged, or the loader returns another layout than the spec promises.
        """
        data = self.loader(split, root, download)
        labels = data.labels
        if isinstance(data, LabelledImages):
            expected = (len(labels), 3, self.image_size, self.image_size)
            if data.images.dtype != torch.uint8 or tuple(data.images.shape) != expected:
                raise ValueError(
                    f"The loader of {self.name} returned {data.images.dtype} images of shape "
                    f"{tuple(data.images.shape)}; torch.uint8 of shape {expected} is needed."
                )
        if labels.dtype != torch.int64 or len(labels) == 0 or not 0 <= labels.min() <= labels.max() < self.num_classes:
            raise ValueError(f"The loader of {self.name} must return int64 labels from 0 to {self.num_classes - 1}.")
        return data


_IMPORT = "python:"
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
        name: A registered name, such as `cifar10`; or `python:PACKAGE.MODULE:NAME`, which imports the module that
            registers NAME.

    Returns:
        Its spec.

    Raises:
        ValueError: If the name is not registered, or the module cannot be imported.
    """
    if name.startswith(_IMPORT):
        return _imported(name)
    if name in _SPECS:
        return _SPECS[name]
    plain = name.lower().replace("-", "").replace("_", "")
    close = get_close_matches(plain, known_names(), n=1)
    hint = f"Did you mean {close[0]!r}?" if close else "A module's own data set is named python:MODULE:NAME."
    raise ValueError(f"There is no data set {name!r}; known: {', '.join(known_names())}. {hint}")


def _imported(text: str) -> DatasetSpec:
    module, _, name = text.removeprefix(_IMPORT).partition(":")
    if not module or not name:
        raise ValueError(f"{text} names no data set of a module; write python:PACKAGE.MODULE:NAME.")
    try:
        import_module(module)
    except Exception as error:  # a user's file may raise anything
        missing = getattr(error, "name", None) if isinstance(error, ModuleNotFoundError) else None
        if missing and f"{module}.".startswith(f"{missing}."):
            raise ValueError(
                f"{text} cannot be imported ({error}); install the package, or put its folder in PYTHONPATH."
            ) from error
        raise ValueError(f"{text}: {module} fails when it is imported: {type(error).__name__}: {error}") from error
    if name not in _SPECS:
        close = get_close_matches(name, known_names(), n=1)
        hint = f" Did you mean {close[0]!r}?" if close else ""
        raise ValueError(
            f"{text}: {module} registers no data set {name!r}; call register(DatasetSpec(name={name!r}, ...)) in it. "
            f"Known: {', '.join(known_names())}.{hint}"
        )
    return _SPECS[name]
