"""Resolution policies: how a purifier that was trained on small images serves larger ones.

Every policy keeps the shape, takes images in [0, 1] to images in [0, 1], is differentiable, and keeps the memory of its
activations to that of `chunk` tiles: several chunks are computed anew in the backward pass instead of kept.
"""

import copy
import difflib
import math
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from maep_lightning.functional.straight_through import within_range
from maep_lightning.functional.tiles import center_crop, cut_tiles, hann_window, join_tiles, padded_side, reflect_pad
from maep_lightning.models.baselines import Resize
from maep_lightning.models.mae import MaskedAutoencoder

CHUNK = 256
"""Tiles purified at once, unless told otherwise."""


class Tile(nn.Module):
    """Purifies tiles that lie side by side, each on its own.

    Sides that are no multiple of the tile are padded by reflection, evenly on both sides, and cropped back.

    Args:
        purifier: Images `(B, 3, size, size)` in [0, 1] to images in [0, 1].
        size: Side of a tile in pixels.
        chunk: Tiles purified at once; how much memory is used, not what comes out, but for the order of random draws.

    Attributes:
        policy: What the rows of results call it.
    """

    policy: str = "tile"

    def __init__(self, purifier: nn.Module, size: int, chunk: int = CHUNK) -> None:
        super().__init__()
        self.purifier = purifier
        self.size = size
        self.stride = size
        self.chunk = chunk
        self.train(purifier.training)

    def forward(self, images: Tensor) -> Tensor:
        """Purify images `(B, 3, H, W)` in [0, 1]."""
        h, w = images.shape[-2:]
        padded = reflect_pad(images, *(padded_side(side, self.size, self.stride) for side in (h, w)))
        tiles = cut_tiles(padded, self.size, self.stride)
        purified = in_chunks(self.purifier, tiles, self.chunk)
        return center_crop(self.blend(padded, tiles, purified), h, w)

    def blend(self, images: Tensor, tiles: Tensor, purified: Tensor) -> Tensor:
        """Make images of purified tiles.

        Args:
            images: The padded images, `(B, 3, H, W)`.
            tiles: Their tiles, `(B * L, 3, size, size)`.
            purified: The same, purified.

        Returns:
            `(B, 3, H, W)`.
        """
        return join_tiles(purified, images.shape[-2], images.shape[-1], self.stride)

    def extra_repr(self) -> str:
        """What the fingerprint of a run tells policies apart by; `chunk` only changes what is drawn at random."""
        return f"size={self.size}, stride={self.stride}"


class Overlap(Tile):
    """Purifies tiles laid every half tile and blends them with Hann weights, so that no seams are left.

    Every pixel has positive weight, those at the image's border too, and the weights are normalised to sum to 1. What
    is blended are the corrections `purified - tile`, which is the same in exact arithmetic and leaves an image that
    the purifier does not change as it is, to the bit.

    Args:
        purifier: As in `Tile`.
        size: Side of a tile in pixels, even.
        chunk: As in `Tile`.

    Raises:
        ValueError: If the size is odd.
    """

    policy: str = "overlap"

    def __init__(self, purifier: nn.Module, size: int, chunk: int = CHUNK) -> None:
        if size % 2:
            raise ValueError(f"Overlapping tiles lie half a tile apart, so their size must be even, not {size}.")
        super().__init__(purifier, size, chunk)
        self.stride = size // 2
        self.window: Tensor
        self.register_buffer("window", hann_window(size), persistent=False)

    def blend(self, images: Tensor, tiles: Tensor, purified: Tensor) -> Tensor:
        """Make images of purified tiles; see `Tile.blend`."""
        h, w = images.shape[-2:]
        count = len(tiles) // len(images)
        total = join_tiles(self.window.expand(count, 1, -1, -1), h, w, self.stride)
        correction = join_tiles((purified - tiles) * self.window, h, w, self.stride)
        return within_range(images + correction / total)


class Interpolate(nn.Module):
    """Runs the network on whole images, with the position table of its training grid stretched over their grid.

    A position table is a formula here, so the table is evaluated between the positions of training instead of being
    resampled. Without this, `native`, positions go on beyond those of training. Sides that are no multiple of the patch
    are padded by reflection and cropped back.

    Args:
        purifier: Purifier with a `MaskedAutoencoder` inside; a copy is made of it.
        chunk: As in `Tile`; whole images are taken together up to so many tiles of the training size, at least one.

    Raises:
        ValueError: If there is no position table in the purifier.
    """

    policy: str = "interpolate"

    def __init__(self, purifier: nn.Module, chunk: int = CHUNK) -> None:
        super().__init__()
        self.purifier = copy.deepcopy(purifier)
        networks = [module for module in self.purifier.modules() if isinstance(module, MaskedAutoencoder)]
        if not networks:
            raise ValueError(
                f"{type(purifier).__name__} has no position table to interpolate: take another policy, such as native."
            )
        for network in networks:
            network.interpolate_positions()
        self.size = max(network.config.image_size for network in networks)
        self.patch = math.lcm(*(network.config.patch_size for network in networks))
        self.chunk = chunk
        self.train(purifier.training)

    def forward(self, images: Tensor) -> Tensor:
        """Purify images `(B, 3, H, W)` in [0, 1]."""
        h, w = images.shape[-2:]
        padded = reflect_pad(images, *(padded_side(side, self.patch, self.patch) for side in (h, w)))
        together = max(1, self.chunk * self.size**2 // padded[0, 0].numel())
        return center_crop(in_chunks(self.purifier, padded, together), h, w)


class ResizeOnly(Resize):
    """The control: images made as small as those that the purifier was trained on, and large again; no purifier.

    Whatever this defends is owed to the loss of resolution alone. Images that are no larger are left as they are.

    Args:
        size: Shorter side in pixels of the small images.
    """

    policy: str = "resize"

    def purify(self, images: Tensor) -> Tensor:
        """Resample `(B, 3, H, W)`."""
        return super().purify(images) if min(images.shape[-2:]) > self.size else images


def apply_policy(purifier: nn.Module, policy: str = "native", chunk: int = CHUNK) -> nn.Module:
    """Put a purifier under a resolution policy.

    Args:
        purifier: Images `(B, 3, H, W)` in [0, 1] to images in [0, 1].
        policy: `native` (the purifier as it is), `tile`, `overlap`, `interpolate` or `resize`. Tiles have the size that
            the purifier was trained on; `tile:64` and the like name another, and `resize:64` likewise.
        chunk: Tiles purified at once.

    Returns:
        A network that keeps the shape of its images and says in `policy` what it is; the purifier itself for `native`.

    Raises:
        ValueError: If the policy is unknown, needs a size that is not known, or the chunk is not positive.
    """
    if chunk < 1:
        raise ValueError(f"chunk is a number of tiles, at least 1, not {chunk}.")
    name, colon, text = policy.partition(":")
    if name in _WITHOUT_SIZE and not colon:
        return _WITHOUT_SIZE[name](purifier, chunk)
    if name in _WITH_SIZE:
        network = _WITH_SIZE[name](purifier, _size(purifier, policy, text), chunk)
        network.policy = policy
        return network
    known = [*_WITHOUT_SIZE, *(f"{name}[:SIZE]" for name in _WITH_SIZE)]
    close = difflib.get_close_matches(name, [*_WITHOUT_SIZE, *_WITH_SIZE], n=1)
    hint = f" Did you mean {close[0]}?" if close else ""
    raise ValueError(f"Unknown resolution policy {policy!r}; known are {', '.join(known)}.{hint}")


def in_chunks(purifier: nn.Module, images: Tensor, size: int) -> Tensor:
    """Purify `(B, 3, H, W)` in chunks of `size`, of which only one at a time has its activations in memory."""
    if len(images) <= size:
        return purifier(images)  # type: ignore[no-any-return]
    run = partial(checkpoint, purifier, use_reentrant=False) if torch.is_grad_enabled() else purifier
    return torch.cat([run(part) for part in torch.split(images, size)])


_WITHOUT_SIZE: dict[str, Callable[[nn.Module, int], nn.Module]] = {
    "native": lambda purifier, chunk: purifier,
    "interpolate": Interpolate,
}
_WITH_SIZE: dict[str, Callable[[nn.Module, int, int], Tile | ResizeOnly]] = {
    "tile": Tile,
    "overlap": Overlap,
    "resize": lambda purifier, size, chunk: ResizeOnly(size).eval(),
}


def _size(purifier: nn.Module, policy: str, text: str) -> int:
    if text:
        if not text.isdecimal() or int(text) < 2:
            raise ValueError(f"{policy!r} names no size in pixels; write {policy.partition(':')[0]}:32, for instance.")
        return int(text)
    sizes = [module.config.image_size for module in purifier.modules() if isinstance(module, MaskedAutoencoder)]
    if not sizes:
        raise ValueError(
            f"{type(purifier).__name__} does not say what size it was trained on; name one, as in {policy}:32."
        )
    return max(sizes)
