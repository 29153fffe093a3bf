"""Large pictures put together of small images, for networks of large images where there are only small ones."""

import torch
from torch import Tensor

from maep_lightning.functional.resampling import resample


def grids(size: int, side: int, images: int) -> list[int]:
    """The numbers of rows and columns with which images fill collages evenly, and without being shrunk.

    Args:
        size: Side of an image in pixels.
        side: Side of a collage in pixels.
        images: Number of images.

    Returns:
        All g, in order, for which g x g images fill each of the collages that `collages` makes of so many images.

    Raises:
        ValueError: If a collage is smaller than an image, or has more pixels than all the images.
    """
    if side < size:
        raise ValueError(f"A collage of {side} pixels is smaller than the images of {size} that it is to be made of.")
    count = images * size**2 // side**2
    if not count:
        raise ValueError(
            f"{images} images of {size} pixels do not fill a collage of {side}: it takes a batch of"
            f" {-(-(side**2) // size**2)} or more."
        )
    return [g for g in range(1, side // size + 1) if side % g == 0 and g * g * count <= images]


def collages(images: Tensor, side: int, generator: torch.Generator | None = None) -> Tensor:
    """Put images together to square pictures, as many as they have the pixels for.

    All the pictures have g x g images, enlarged to fill them; g is drawn evenly from those that `grids` allows, from
    one enlarged image to a mosaic of images as they are. Between them lies the sharpness of photographs of the
    pictures' size. Which images are used is drawn too, each at most once.

    Args:
        images: `(B, C, size, size)`.
        side: Side of a picture in pixels.
        generator: Source of chance, on the CPU, from which nothing has to be fetched; the global one if None.

    Returns:
        `(B * size^2 // side^2, C, side, side)`, in the range of `images`.

    Raises:
        ValueError: As `grids`.
    """
    batch, channels, size, _ = images.shape
    allowed = grids(size, side, batch)
    g = allowed[int(torch.randint(len(allowed), (), generator=generator))]
    count = batch * size**2 // side**2
    chosen = torch.randperm(batch, generator=generator)[: count * g * g].to(images.device)
    parts = resample(images[chosen], side // g, side // g)
    rows = parts.view(count, g, g, channels, side // g, side // g).permute(0, 3, 1, 4, 2, 5)
    return rows.reshape(count, channels, side, side)
