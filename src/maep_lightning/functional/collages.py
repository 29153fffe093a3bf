"""Large pictures put together of small images, for networks of large images where there are only small ones."""

import torch
from torch import Tensor

from maep_lightning.functional.resampling import resample


def grids(size: int, side: int, images: int, shrink: int = 1) -> list[int]:
    """The numbers of rows and columns with which images fill collages evenly.

    Args:
        size: Side of an image in pixels.
        side: Side of a collage in pixels.
        images: Number of images.
        shrink: Factor by which images may be shrunk at most.

    Returns:
        All g, in order, for which g x g images fill each of the collages that `collages` makes of so many images.

    Raises:
        ValueError: If a collage is smaller than an image or has more pixels than all the images, shrunk as they may be,
            or if `shrink` is below 1.
    """
    if shrink < 1:
        raise ValueError(f"shrink is the factor by which images are shrunk at most, 1 or more, not {shrink}.")
    if side < size:
        raise ValueError(f"A collage of {side} pixels is smaller than the images of {size} that it is to be made of.")
    count = images * size**2 // (side * shrink) ** 2
    if not count:
        least = -(-((side * shrink) ** 2) // size**2)
        shrunk = f" that may be shrunk {shrink} times" if shrink > 1 else ""
        raise ValueError(
            f"{images} images of {size} pixels{shrunk} do not fill a collage of {side}:"
            f" it takes a batch of {least} or more."
        )
    return [g for g in range(1, shrink * side // size + 1) if side % g == 0 and g * g * count <= images]


def collages(images: Tensor, side: int, generator: torch.Generator | None = None, shrink: int = 1) -> Tensor:
    """Put images together to square pictures, as many as they have the pixels for.

    All the pictures have g x g images, resized to fill them; g is drawn evenly from those that `grids` allows, from one
    enlarged image to a mosaic of images as they are, or shrunk. Enlarged ones are more blurred than photographs of the
    pictures' size, shrunk ones as sharp. Which images are used is drawn too, each at most once.

    Args:
        images: `(B, C, size, size)`.
        side: Side of a picture in pixels.
        generator: Source of chance, on the CPU, from which nothing has to be fetched; the global one if None.
        shrink: Factor by which images may be shrunk at most.

    Returns:
        `(B * size^2 // (side * shrink)^2, C, side, side)`, in the range of `images`.

    Raises:
        ValueError: As `grids`.
    """
    batch, channels, size, _ = images.shape
    allowed = grids(size, side, batch, shrink)
    g = allowed[int(torch.randint(len(allowed), (), generator=generator))]
    count = batch * size**2 // (side * shrink) ** 2
    chosen = torch.randperm(batch, generator=generator)[: count * g * g].to(images.device)
    parts = resample(images[chosen], side // g, side // g)
    rows = parts.view(count, g, g, channels, side // g, side // g).permute(0, 3, 1, 4, 2, 5)
    return rows.reshape(count, channels, side, side)
