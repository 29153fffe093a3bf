"""A folder of images, for `predict`."""

from pathlib import Path

import numpy as np
import torch
from PIL import ExifTags, Image
from torch import Tensor
from torch.utils.data import Dataset

from maep_lightning.data.decoding import UNREADABLE, check_depth, read_rgb
from maep_lightning.data.listing import image_paths

_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""What brings an image upright, by the number of its orientation in Exif data."""

_SIDEWAYS = {_TURNS[number] for number in (5, 6, 7, 8)}
"""Those that swap width and height."""


class ImageFolder(Dataset[tuple[Tensor, str]]):
    """The images of a folder and its sub-folders as `image_paths` finds them, sorted by path, with their paths.

    A photo whose Exif data say how the camera was held is turned upright, since what is written has no such data.
    Transparency is dropped: of a transparent pixel the colour below is taken.

    Every header is read at once, so that a bad file is named before any work is done.

    Args:
        folder: The folder.
        image_size: Height and width of an image, or what both are multiples of; None for images of any size.

    Raises:
        FileNotFoundError: If there is no such folder, or no image in it.
        ValueError: If a file cannot be read, has another size, or has more than 8 bits a channel.
    """

    def __init__(self, folder: str | Path, image_size: int | None) -> None:
        root = Path(folder)
        if not root.is_dir():
            raise FileNotFoundError(f"There is no folder {root.absolute()} to read images from.")
        self.paths = sorted(root / path for path in image_paths(root))
        if not self.paths:
            raise FileNotFoundError(f"{root.absolute()} holds no image (png, jpg, bmp, webp, tiff, ...).")
        headers = [_checked_header(path, image_size) for path in self.paths]
        self.sizes = [size for size, _ in headers]
        self._turns = [turn for _, turn in headers]

    def __len__(self) -> int:
        """Number of images."""
        return len(self.paths)

    def __getitem__(self, index: int) -> tuple[Tensor, str]:
        """One image `(3, H, W)` uint8 and its path."""
        path = self.paths[index]
        image = read_rgb(path)
        if (turn := self._turns[index]) is not None:
            image = image.transpose(turn)
        return torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous(), str(path)


def _checked_header(path: Path, image_size: int | None) -> tuple[tuple[int, int], Image.Transpose | None]:
    """Width and height of the upright image, and what brings it upright."""
    try:
        with Image.open(path) as image:
            turn = _turn(image)
            width, height = image.size[::-1] if turn in _SIDEWAYS else image.size
    except UNREADABLE as error:
        raise ValueError(f"{path} cannot be read as an image: {error}. Replace or remove it.") from error
    check_depth(image, path)
    if image_size is not None and (width % image_size or height % image_size):
        raise ValueError(
            f"{path} is {width}x{height} pixels; both must be {image_size} or a multiple of it. Purify it in tiles "
            f"with --model.policy tile (tile:32 for a purifier without a size of its own), or crop or resize it first: "
            f"resizing changes what the purifier sees, so it is not done silently."
        )
    return (width, height), turn


def _turn(image: Image.Image) -> Image.Transpose | None:
    """What brings an image upright, from its header alone; None if nothing must, or its Exif data are damaged."""
    if image.format == "TIFF":  # which Pillow turns itself
        return None
    try:
        # PNG's own `getexif` would decode the whole image.
        return _TURNS.get(Image.Image.getexif(image).get(ExifTags.Base.Orientation, 1))
    except Exception:  # Pillow raises anything on damaged Exif data; the pixels may be whole
        return None
