"""Which images, and how they are read: what the DataModule and `verify` are told in the same words."""

import math
import os
import warnings
from dataclasses import dataclass, replace
from difflib import get_close_matches
from functools import cached_property
from pathlib import Path
from typing import get_args

import torch

from maep_lightning.data.decoding import Decoder, Interpolation
from maep_lightning.data.imagenet import imagenet_classes, indices_of
from maep_lightning.data.layouts import (
    FolderLoader,
    class_folders,
    find_split,
    refuse_mixture,
    some,
    split_folder,
    sub_folders,
    warn_of_empty,
)
from maep_lightning.data.registry import (
    DatasetSpec,
    ImageFiles,
    LabelledImages,
    LabelSpace,
    Split,
    get_spec,
    register,
)
from maep_lightning.data.stream import read_all

CHOICES = ("folder", "image_list", "image_size", "crop_pct", "label_space", "interpolation", "test_limit")
"""Options of the DataModule, besides the data set and its root, that decide which test images there are."""

_HOW_TO_GET = "name any folder that holds train/ and val/, or a sub-folder for each class."
FOLDER = register(
    DatasetSpec(
        name="folder",
        image_size=224,
        class_names=(),  # read from the folder
        licence="That of the images",
        how_to_get=_HOW_TO_GET,
        loader=FolderLoader((), (), _HOW_TO_GET),
        val_size=200,
        crop_scale=(0.2, 1.0),
        crop_pct=0.875,
    )
)


@dataclass(frozen=True)
class ImageSource:
    """A registered data set and what is asked of it.

    Args:
        dataset: Name of a registered data set, or `python:MODULE:NAME` for one of an importable module.
        root: Folder that holds data sets; if None, the environment variable `MAEP_DATA_DIR`, else `data`.
        folder: The data set's own folder, as it is or below `root`; if None, one of its usual name below `root`. The
            data set `folder` needs it.
        image_list: Text file that names the test images to take, in order; see `FolderLoader`.
        image_size: Height and width of an image read from a file; the data set's own if None.
        crop_pct: Share of the side of the resized image that the centre crop keeps, above 0, 1 at most; the data set's
            own if None.
        label_space: `own` or `imagenet`; the data set's own choice if None.
        interpolation: How image files are resized: `bilinear` or `bicubic`.

    Raises:
        FileNotFoundError: If the data set `folder` is not where it is said to be.
        ValueError: If the data set is unknown, an option is out of range or not one of this data set, or it cannot be
            told which sub-folders of the data set `folder` are splits and which are classes.
    """

    dataset: str = "digits"
    root: str | None = None
    folder: str | None = None
    image_list: str | None = None
    image_size: int | None = None
    crop_pct: float | None = None
    label_space: LabelSpace | None = None
    interpolation: Interpolation = "bilinear"

    def __post_init__(self) -> None:
        if self.image_size is not None and self.image_size < 1:
            raise ValueError(f"image_size must be at least 1, not {self.image_size}.")
        for option, choices in {"label_space": LabelSpace, "interpolation": Interpolation}.items():
            value, known = getattr(self, option), get_args(choices)
            if value is not None and value not in known:
                close = get_close_matches(str(value), known, n=1)
                hint = f" Did you mean {close[0]!r}?" if close else ""
                raise ValueError(f"{option} must be {' or '.join(known)}, not {value!r}.{hint}")
        if not 0 < self.spec.crop_pct <= 1:
            raise ValueError(f"crop_pct must be above 0 and at most 1, not {self.crop_pct}.")
        if self._mapped and self.spec.class_indices is None:
            raise ValueError(
                f"The classes of {self.title} are not ImageNet's, so its labels have no place among the 1000: leave "
                f"label_space out, or name the class folders by WordNet numbers, such as n01440764."
            )

    @property
    def root_path(self) -> Path:
        """Folder that holds data sets."""
        return Path(self.root or os.environ.get("MAEP_DATA_DIR") or "data").expanduser()

    @cached_property
    def spec(self) -> DatasetSpec:
        """What is known of the data set, with what was asked in place of what is usual."""
        spec = get_spec(self.dataset)
        loader = spec.loader
        if isinstance(loader, FolderLoader):
            loader = replace(
                loader,
                folder=None if self.folder is None else Path(self.folder),
                image_list=None if self.image_list is None else Path(self.image_list),
            )
            if spec.name == FOLDER.name:
                spec, loader = self._described(spec, loader)
        elif self.folder is not None or self.image_list is not None:
            raise ValueError(
                f"folder and image_list are for data sets of image files, which {spec.name} is not: leave them out, "
                f"or choose 'folder' for images of your own."
            )
        size = spec.image_size if self.image_size is None else self.image_size
        crop_pct = spec.crop_pct if self.crop_pct is None else self.crop_pct
        return replace(spec, loader=loader, image_size=size, crop_pct=crop_pct)

    @property
    def title(self) -> str:
        """What reports call it."""
        name = Path(self.folder).name if self.spec.name == FOLDER.name and self.folder else self.spec.name
        return f"{name} ({Path(self.image_list).name})" if self.image_list else name

    @property
    def framing(self) -> tuple[int, float, str] | None:
        """Side in pixels, `crop_pct` and interpolation of image files in class folders; None for other data sets."""
        if not isinstance(self.spec.loader, FolderLoader):
            return None
        return self.spec.image_size, self.spec.crop_pct, self.interpolation

    @property
    def labelled(self) -> bool:
        """Whether there are classes; there are none where `train/` of the data set `folder` has no class folders."""
        return not isinstance(self.spec.loader, FolderLoader) or bool(self.spec.loader.classes)

    @property
    def class_names(self) -> tuple[str, ...]:
        """One name a class, in the order of the labels given out."""
        return tuple(item.name for item in imagenet_classes()) if self._mapped else self.spec.class_names

    def load(self, split: Split, download: bool = False) -> LabelledImages | ImageFiles:
        """A split, labelled as asked.

        Args:
            split: `train` or `test`.
            download: Whether a missing set may be fetched.

        Returns:
            All images of the split, or the files they are in, in a fixed order.

        Raises:
            FileNotFoundError: If files are missing.
            ValueError: If files are damaged, or are images of a fixed size and another, a crop or an interpolation was
                asked for.
        """
        usual = get_spec(self.dataset)
        native = usual.image_size
        data = replace(self.spec, image_size=native).load(split, self.root_path, download)
        if isinstance(data, LabelledImages) and self.spec.image_size != native:
            raise ValueError(
                f"{self.spec.name} comes as images of {native}x{native} pixels, not {self.spec.image_size}: leave "
                f"image_size out. Only sets of image files are resized."
            )
        if isinstance(data, LabelledImages) and (
            self.spec.crop_pct != usual.crop_pct or self.interpolation != "bilinear"
        ):
            given = "interpolation" if self.spec.crop_pct == usual.crop_pct else "crop_pct"
            raise ValueError(
                f"{self.spec.name} comes as images of {native}x{native} pixels, which are taken whole: leave {given} "
                f"out. Only sets of image files are resized and cropped."
            )
        if self._mapped and self.spec.class_indices is not None:
            data = data._replace(labels=torch.tensor(self.spec.class_indices)[data.labels])
        return data

    def decoder(self, training: bool = False) -> Decoder:
        """How files become pixels.

        Args:
            training: Whether the margin around the centre crop is kept, for crops drawn on the device.
        """
        size = self.spec.image_size
        resize = math.floor(size / self.spec.crop_pct)
        return Decoder(resize, resize if training else size, self.interpolation)

    def test_images(self, limit: int | None = None) -> LabelledImages:
        """The test images of a run in memory, from files that are there.

        Args:
            limit: The first so many; all if None.

        Raises:
            FileNotFoundError: If files are missing.
            ValueError: If files are damaged.
        """
        return self.decoded(self.load("test").take(slice(limit)))

    def decoded(self, data: LabelledImages | ImageFiles, num_workers: int = 0) -> LabelledImages:
        """Images to evaluate on, in memory.

        Args:
            data: Part of what `load` returned.
            num_workers: Processes that decode; 0 decodes in this one.

        Raises:
            ValueError: If a file cannot be decoded.
        """
        return data if isinstance(data, LabelledImages) else read_all(data, self.decoder(), num_workers)

    @property
    def _mapped(self) -> bool:
        return (self.label_space or self.spec.label_space) == "imagenet"

    def _described(self, spec: DatasetSpec, loader: FolderLoader) -> tuple[DatasetSpec, FolderLoader]:
        """The data set `folder`, with the classes that the folder has."""
        if self.folder is None:
            raise ValueError(f"The data set 'folder' needs --data.init_args.folder: {_HOW_TO_GET}")
        place = loader.find(self.root_path, download=False)
        refuse_mixture(place)
        train = find_split(place, "train")
        if train is not None and len(sub_folders(train)) < 2:
            return replace(spec, class_names=("image",)), loader
        origin = train or split_folder(place, "test")
        try:
            names = tuple(class_folders(origin))
        except ValueError as error:
            raise ValueError(
                f"{error} Images for pre-training alone need no class: put them into {place / 'train'}/."
            ) from None
        warn_of_empty(origin, names)
        indices = indices_of(names)
        odd = [name for name in names if indices_of((name,)) is None]
        if 0 < len(odd) < len(names) and self.label_space != "own":
            warnings.warn(
                f"{len(odd)} of the {len(names)} class folders of {origin} are not named by WordNet numbers of "
                f"ImageNet's 1000 classes: {some(odd)}. So all labels count from 0, not as ImageNet's classifiers "
                f"number them: rename or remove these folders, or say that it is meant: "
                f"--data.init_args.label_space own.",
                stacklevel=1,
            )
        spec = replace(
            spec, class_names=names, class_indices=indices, label_space="own" if indices is None else "imagenet"
        )
        if indices is not None:
            spec = replace(spec, class_names=tuple(imagenet_classes()[index].name for index in indices))
        return spec, replace(loader, classes=names)
