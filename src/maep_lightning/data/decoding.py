"""From an image file to uint8 pixels of one size, always the same ones for the same file."""

from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Literal

import torch
from PIL import Image
from torch import Tensor

Interpolation = Literal["bilinear", "bicubic"]

UNREADABLE = (OSError, SyntaxError, ValueError, RuntimeError, Image.DecompressionBombError)
"""What Pillow raises on files that are damaged or no image: RuntimeError on AVIF, ValueError on QOI, DDS and others."""


@cache
def image_suffixes() -> frozenset[str]:
    """Endings, in lower case, of the files that Pillow reads."""
    return frozenset(suffix for suffix, kind in Image.registered_extensions().items() if kind in Image.OPEN)


def check_depth(image: Image.Image, path: Path) -> None:
    """Refuse what `convert("RGB")` would clip.

    Args:
        image: An image, its header read.
        path: Where it came from.

    Raises:
        ValueError: If a channel has more than 8 bits.
    """
    if image.mode.startswith(("I", "F")):
        raise ValueError(f"{path} has more than 8 bits a channel (mode {image.mode}); save it with 8.")


def read_rgb(path: Path) -> Image.Image:
    """Decode a file.

    Args:
        path: An image file.

    Returns:
        The image in RGB.

    Raises:
        ValueError: If the file is missing, is damaged, or has more than 8 bits a channel.
    """
    try:
        with Image.open(path) as image:
            image.load()
    except UNREADABLE as error:
        raise ValueError(f"{path} is damaged and cannot be decoded: {error}. Replace or remove it.") from error
    check_depth(image, path)
    return image.convert("RGB")


@dataclass(frozen=True)
class Decoder:
    """Resize so that the shorter side fits, and cut out the square in the middle.

    Unless told otherwise bilinear, as most of torchvision's ImageNet classifiers and RobustBench are evaluated; always
    with antialiasing. There is no chance in it: that is left to the device, where it depends on seed and step alone.

    Args:
        resize: Length of the shorter side after resizing, in pixels.
        crop: Side of the square, in pixels; `resize` at most.
        interpolation: `bilinear` or `bicubic`.
    """

    resize: int
    crop: int
    interpolation: Interpolation = "bilinear"

    def __call__(self, path: Path) -> Tensor:
        """Pixels `(3, crop, crop)` uint8 of a file.

        Raises:
            ValueError: If the file cannot be decoded.
        """
        # Importing torchvision takes a second, and sets that lie in memory never need it.
        from torchvision.transforms.v2 import InterpolationMode, functional

        mode = InterpolationMode(self.interpolation)
        image = functional.resize(read_rgb(path), [self.resize], mode, antialias=True)
        pixels: Tensor = functional.pil_to_tensor(functional.center_crop(image, [self.crop, self.crop]))
        return pixels.to(torch.uint8)
