"""A folder of images, for `predict`."""

from pathlib import Path

import numpy as np
import torch
from PIL import ExifTags, Image, ImageOps
from torch import Tensor
from torch.utils.data import Dataset

from maep_lightning.data.decoding import UNREADABLE, check_depth, read_rgb
from maep_lightning.data.listing import image_paths


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
        self.sizes = [_checked_size(path, image_size) for path in self.paths]

    def __len__(self) -> int:
        """Number of images."""
        return len(self.paths)

    def __getitem__(self, index: int) -> tuple[Tensor, str]:
        """One image `(3, H, W)` uint8 and its path."""
        path = self.paths[index]
        image = ImageOps.exif_transpose(read_rgb(path))
        return torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous(), str(path)


def _checked_size(path: Path, image_size: int | None) -> tuple[int, int]:
    try:
        with Image.open(path) as image:
            width, height = _upright_size(image)
    except UNREADABLE as error:
        raise ValueError(f"{path} cannot be read as an image: {error}. Replace or remove it.") from error
    check_depth(image, path)
    if image_size is not None and (width % image_size or height % image_size):
        raise ValueError(
            f"{path} is {width}x{height} pixels; both must be {image_size} or a multiple of it. Purify it in tiles "
            f"with --model.policy tile (tile:32 for a purifier without a size of its own), or crop or resize it first: "
            f"resizing changes what the purifier sees, so it is not done silently."
        )
    return width, height


def _upright_size(image: Image.Image) -> tuple[int, int]:
    """Width and height behind `exif_transpose`, from the header alone."""
    width, height = image.size
    # TIFF files come upright from Pillow. PNG's own `getexif` would decode the whole image.
    if image.format != "TIFF" and Image.Image.getexif(image).get(ExifTags.Base.Orientation) in (5, 6, 7, 8):
        return height, width
    return width, height
