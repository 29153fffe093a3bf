"""Large pictures put together of small images, for networks of large images where there are only small ones."""

from collections.abc import Sequence

import torch
from torch import Tensor

from maep_lightning.functional.resampling import resample


def collage_count(size: int, side: int, grids: Sequence[int], images: int) -> int:
    """How many collages images are enough for, whatever grid is drawn.

    Args:
        size: Side of an image in pixels.
        side: Side of a collage in pixels.
        grids: The numbers g of rows and columns that collages may have.
        images: Number of images.

    Returns:
        The number of collages of the largest grid, 1 or more.

    Raises:
        ValueError: If there are no grids, if one does not divide the side evenly, or if the images do not fill the
            largest.
    """
    if not grids:
        raise ValueError("grids = [] leaves no number of rows and columns for a collage: name one or more.")
    if uneven := [g for g in grids if g < 1 or side % g]:
        raise ValueError(
            f"A collage of {side} pixels cannot have {uneven[0]} rows and columns: the grids must divide {side} evenly,"
            f" such as {max(1, side // size)}, which leaves images of {size} pixels about as they are."
        )
    largest = max(grids)
    if images < largest**2:
        raise ValueError(
            f"{images} images do not fill a collage of {largest} x {largest}: it takes a batch of {largest**2}."
        )
    return images // largest**2


def collages(images: Tensor, side: int, grids: Sequence[int], generator: torch.Generator | None = None) -> Tensor:
    """Put images together to square pictures, as many as they fill in the largest grid.

    All the pictures have g x g images, resized to fill them; g is drawn evenly from `grids`. Enlarged images are more
    blurred than photographs of the pictures' size, shrunk ones as sharp. Which images are used is drawn too, each at
    most once.

    Args:
        images: `(B, C, size, size)`.
        side: Side of a picture in pixels.
        grids: The numbers g of rows and columns that pictures may have; each divides `side`.
        generator: Source of chance, on the CPU, from which nothing has to be fetched; the global one if None.

    Returns:
        `(B // max(grids)^2, C, side, side)`, in the range of `images`.

    Raises:
        ValueError: As `collage_count`.
    """
    batch, channels, size, _ = images.shape
    count = collage_count(size, side, grids, batch)
    g = grids[int(torch.randint(len(grids), (), generator=generator))]
    chosen = torch.randperm(batch, generator=generator)[: count * g * g].to(images.device)
    parts = resample(images[chosen], side // g, side // g)
    rows = parts.view(count, g, g, channels, side // g, side // g).permute(0, 3, 1, 4, 2, 5)
    return rows.reshape(count, channels, side, side)
