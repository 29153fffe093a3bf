"""Data sets of image files, in the layouts in which they are published."""

import os
import tempfile
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from maep_lightning.data.listing import image_paths, is_image, is_left_over, visible_files
from maep_lightning.data.lists import read_annotations, read_list
from maep_lightning.data.registry import ImageFiles, Split
from maep_lightning.data.splits import balanced_order

# Fixed, so that the first n test images are the same ones everywhere.
_ORDER_SEED = 20_120_625

# Names of the folder of a split, in lower case; the first that is there is taken.
_SPLITS: dict[Split, tuple[str, ...]] = {"train": ("train",), "test": ("val", "valid", "validation", "test")}


@dataclass(frozen=True)
class FolderLoader:
    """Finds the files of a data set: a `DatasetSpec.loader` for whatever lies in folders.

    The folder holds `train/` and `val/` (or `valid/`, `validation/`, `test/`; in capitals too), each with a sub-folder
    for each class, or class sub-folders and nothing else, which are a test split. Below its sub-folder the images of a
    class may lie at any depth. Some classes may be missing. Test images come in a fixed class-balanced order, so that
    any first n of them are a fair sample; those that `val_annotations.txt` (Tiny-ImageNet) or a list names, in its
    order.

    Args:
        folders: Names of the data set's folder below `root`; the first one that is there is taken.
        classes: Names of the class sub-folders, in label order; none where training images have no classes, and then
            all have label 0 and nothing is tested.
        how_to_get: Said where the folder is missing.
        url: Archive that unpacks to the first of `folders`; None where it cannot be fetched.
        md5: MD5 sum of the archive, if known.
        folder: The folder itself, as it is or below `root`, in place of `folders`.
        image_list: Text file of the test images to take, in order; see `read_list`.
    """

    folders: tuple[str, ...]
    classes: tuple[str, ...]
    how_to_get: str
    url: str | None = None
    md5: str | None = None
    folder: Path | None = None
    image_list: Path | None = None

    def __call__(self, split: Split, root: Path, download: bool) -> ImageFiles:
        """Find the files of a split.

        Raises:
            FileNotFoundError: If the folder, the split or a listed file is missing, or there is no image.
            ValueError: If a sub-folder is no class, there are fewer than two classes, or a list is not understood.
        """
        folder = self.find(root, download)
        place = split_folder(folder, split)
        if not self.classes:
            if split == "train":
                return _unlabelled(place)
            raise ValueError(
                f"{find_split(folder, 'train')} has no folders of at least two classes, so its images serve masked "
                f"pre-training alone and there is nothing to test. Put training images into train/CLASS/, or name the "
                f"folder of the test images by itself: --data.init_args.folder {place}."
            )
        if split == "test" and self.image_list is not None:
            return read_list(self.image_list, place, self.classes)
        annotations = place / "val_annotations.txt"
        if annotations.is_file():
            return read_annotations(annotations, self.classes)
        files = scan(place, self.classes, None if self.folders else find_split(folder, "train"))
        return files.take(balanced_order(files.labels, _ORDER_SEED)) if split == "test" else files

    def find(self, root: Path, download: bool) -> Path:
        """The data set's folder.

        Args:
            root: Folder that holds data sets.
            download: Whether a missing set may be fetched.

        Raises:
            FileNotFoundError: If it is missing and is not, or cannot be, fetched.
        """
        places = [root / name for name in self.folders]
        if self.folder is not None:
            places = [self.folder.expanduser(), root / self.folder]
        for place in places:
            if place.is_dir():
                return place
        if self.folder is not None:
            tried = " nor ".join(dict.fromkeys(str(place.absolute()) for place in places))
            raise FileNotFoundError(
                f"There is no folder {tried}: set --data.init_args.folder to the folder that holds train/ and val/, or "
                f"a sub-folder for each class."
            )
        failed = ""
        if download and self.url is not None:
            try:
                return self._fetch(self.url, root)
            except (OSError, RuntimeError) as error:
                failed = f" Its download failed: {error}."
        raise FileNotFoundError(
            f"There is no folder {places[0].absolute()}.{failed} Set --data.init_args.root, or the environment "
            f"variable MAEP_DATA_DIR, to the folder that holds {self.folders[0]}/, or --data.init_args.folder to that "
            f"folder itself. How to get it: {self.how_to_get}"
        )

    def _fetch(self, url: str, root: Path) -> Path:
        from torchvision.datasets.utils import download_and_extract_archive

        root.mkdir(parents=True, exist_ok=True)
        # A folder under its own name is a whole one: one that was half unpacked would pass for it.
        with tempfile.TemporaryDirectory(dir=root) as unpacked:
            download_and_extract_archive(url, str(root), extract_root=unpacked, md5=self.md5)
            return (Path(unpacked) / self.folders[0]).rename(root / self.folders[0])


def find_split(folder: Path, split: Split) -> Path | None:
    """The sub-folder of a split, whatever the case of its name; None if there is none.

    Args:
        folder: Folder of a data set.
        split: `train` or `test`.
    """
    found = {name.lower(): folder / name for name in sub_folders(folder)}
    return next((found[name] for name in _SPLITS[split] if name in found), None)


def refuse_mixture(folder: Path) -> None:
    """Refuse a folder in which splits and classes cannot be told apart.

    Args:
        folder: Folder of a data set.

    Raises:
        ValueError: If a folder with images lies beside one that has the name of a split.
    """
    known = {name for names in _SPLITS.values() for name in names}
    names = sub_folders(folder)
    splits = [name for name in names if name.lower() in known]
    others = [name for name in names if name.lower() not in known]
    if splits and (others := _with_images(folder, others)):
        raise ValueError(
            f"{folder.absolute()} has {some(splits)} beside other folders with images: {some(others)}. If "
            f"{splits[0]} is a split, move the others out of {folder}; if it is a class like them, move all into "
            f"{folder / 'test'}/, or for training into {folder / 'train'}/."
        )


def split_folder(folder: Path, split: Split) -> Path:
    """Where the images of a split lie.

    Args:
        folder: Folder of a data set.
        split: `train` or `test`.

    Raises:
        FileNotFoundError: If there is no such split.
    """
    place = find_split(folder, split)
    if place is not None:
        return place
    if split == "train":
        raise FileNotFoundError(
            f"{folder.absolute()} has no train/, so there is nothing to train on: class folders without it are a test "
            f"split. Put training images into train/CLASS/ and test images into val/CLASS/."
        )
    if (train := find_split(folder, "train")) is not None:
        raise FileNotFoundError(f"{folder.absolute()} has {train.name}/, but neither val/ nor test/ to test on.")
    return folder


def sub_folders(place: Path) -> list[str]:
    """Names of the sub-folders of a split, sorted, but for those that `is_left_over` names.

    Args:
        place: Folder of a split.
    """
    return sorted(entry.name for entry in os.scandir(place) if entry.is_dir() and not is_left_over(entry.name))


def class_folders(place: Path) -> list[str]:
    """Names of the sub-folders of a split, sorted.

    Args:
        place: Folder of a split.

    Raises:
        ValueError: If there are fewer than two.
    """
    names = sub_folders(place)
    if len(names) < 2:
        raise ValueError(
            f"{place.absolute()} has {len(names)} sub-folder(s), but one for each of at least two classes is needed: "
            f"put each image into a folder named after its class."
        )
    return names


def some(names: Sequence[str]) -> str:
    """The first five names, for a message."""
    return ", ".join(names[:5]) + (", ..." if names[5:] else "")


def warn_of_empty(place: Path, names: Sequence[str]) -> None:
    """Warn of class folders without images.

    Args:
        place: Folder of a split.
        names: Names of its class sub-folders.
    """
    full = set(_with_images(place, names))
    if empty := [name for name in names if name not in full]:
        others = sorted({os.path.splitext(file)[1] for name in empty for file in visible_files(place / name)} - {""})
        instead = f", but files that end in {some(others)}" if others else ""
        warnings.warn(
            f"{place.absolute()} has {len(empty)} class folder(s) without an image that can be read{instead}: "
            f"{some(empty)}. They count as classes all the same: convert their images to PNG, or remove the folders.",
            stacklevel=1,  # one place, so that the same words are said once
        )


def _with_images(place: Path, names: Sequence[str]) -> list[str]:
    """Those of the sub-folders of a folder that hold an image at any depth."""
    return [name for name in names if any(map(is_image, visible_files(place / name)))]


def scan(place: Path, classes: Sequence[str], origin: Path | None = None) -> ImageFiles:
    """The images of a split, sorted by class and path, as `image_paths` finds them.

    Args:
        place: Folder of the split.
        classes: Names of the class sub-folders, in label order.
        origin: Folder whose sub-folders the classes were read from, if they were.

    Raises:
        FileNotFoundError: If there is no image.
        ValueError: If a sub-folder is no class, or fewer than two hold images.
    """
    label_of = {name: label for label, name in enumerate(classes)}
    present = class_folders(place)
    strange = [name for name in present if name not in label_of]
    if strange and origin is not None:
        raise ValueError(
            f"{place.absolute()} has {len(strange)} class(es) that {origin.absolute()} has not, from which the classes "
            f"are read: {some(strange)}. Add their training images, remove their folders, or name the folder of the "
            f"test images by itself, with labels of its own: --data.init_args.folder {place}."
        )
    if strange:
        raise ValueError(
            f"{place.absolute()} has {len(strange)} sub-folder(s) that are no class, such as {strange[0]}; the "
            f"{len(classes)} classes are {classes[0]}, {classes[1]}, ... Rename or remove them, or read the folder "
            f"with the data set 'folder', which takes any classes."
        )
    names, labels = [], []
    for name in sorted(present, key=label_of.__getitem__):
        found = [os.path.join(name, path) for path in image_paths(place / name)]
        names += found
        labels += [label_of[name]] * len(found)
    if not names:
        raise FileNotFoundError(f"{place.absolute()} holds no image (jpg, png, bmp, webp, ...) in its class folders.")
    held = set(labels)
    warn_of_empty(place, [name for name in present if label_of[name] not in held])
    if len(held) < 2:
        raise ValueError(f"All images of {place.absolute()} are of one class, {classes[labels[0]]}; two are needed.")
    return ImageFiles.of(place, names, labels)


def _unlabelled(place: Path) -> ImageFiles:
    """The images of a split and of its sub-folders, all with label 0."""
    # Those beside the sub-folder first.
    names = sorted(image_paths(place), key=lambda name: os.sep in name)
    if not names:
        raise FileNotFoundError(f"{place.absolute()} holds no image (jpg, png, bmp, webp, ...).")
    return ImageFiles.of(place, names, [0] * len(names))
