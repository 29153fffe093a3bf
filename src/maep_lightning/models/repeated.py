"""Options of a purifier at test time: several random masks, several passes. They are part of no weights file."""

import math
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from maep_lightning.models.purifier import Purifier

Aggregate = Literal["mean", "vote"]

_DRAWN = 4
"""Frozen masks that a purifier keeps, those of so many sizes of images."""


class RepeatedPurifier(nn.Module):
    """A purifier applied several times: to V random masks of an image side by side, and one pass after the other.

    Differentiable end to end. With a mask ratio above 0 it is stochastic, and each call draws new masks from torch's
    global generator; without one, one mask and one pass are the purifier itself, bit for bit.

    Args:
        purifier: What is repeated; a `Purifier` where patches are removed, any for passes alone.
        mask_ratio: Share of the patches that is removed at random in each pass, in [0, 1).
        masks: Masks V for each image.
        aggregate: What becomes of the V purified images. `mean`: their mean is the purified image. `vote`: the
            classifier sees each of them, and the class probabilities are averaged (`Voting`); a vote of hard decisions
            would have no gradient.
        passes: How often the purifier is applied, each time to what the pass before returned.
        seed: Freezes the masks: the same V for every image and every call. Drawn anew if None.

    Raises:
        ValueError: If a value is out of range, an option would do nothing, or the purifier has no patches to remove.
    """

    def __init__(
        self,
        purifier: nn.Module,
        mask_ratio: float = 0.0,
        masks: int = 1,
        aggregate: Aggregate = "mean",
        passes: int = 1,
        seed: int | None = None,
    ) -> None:
        super().__init__()
        if not 0 <= mask_ratio < 1:
            raise ValueError(f"mask_ratio must be in [0, 1), not {mask_ratio}.")
        for name, value in (("masks", masks), ("passes", passes)):
            if value < 1:
                raise ValueError(f"{name} must be at least 1, not {value}.")
        if aggregate not in get_args(Aggregate):
            raise ValueError(f"aggregate must be {' or '.join(get_args(Aggregate))}, not {aggregate!r}.")
        if masks > 1 and mask_ratio == 0:
            raise ValueError(f"{masks} masks of ratio 0 are {masks} times the same image: give a mask_ratio above 0.")
        if aggregate == "vote" and masks == 1:
            raise ValueError("A vote needs masks of at least 2.")
        if mask_ratio and not isinstance(purifier, Purifier):
            raise ValueError(
                f"{type(purifier).__name__} has no patches to remove: set mask_ratio to 0, or give an autoencoder."
            )
        self.purifier = purifier
        self.mask_ratio = mask_ratio
        self.masks = masks
        self.aggregate = aggregate
        self.passes = passes
        self.seed = seed
        self._fixed: dict[tuple[int, torch.device], Tensor] = {}
        self.train(purifier.training)

    def forward(self, images: Tensor) -> Tensor:
        """Purify images.

        Args:
            images: `(B, 3, H, W)` in [0, 1].

        Returns:
            The purified images `(B, 3, H, W)` in [0, 1]; for a vote all V of each, `(B, V, 3, H, W)`.
        """
        purified = images.repeat_interleave(self.masks, dim=0) if self.masks > 1 else images
        for step in range(self.passes):
            purified = self._pass(purified, step)
        if self.masks == 1:
            return purified
        drawn = purified.reshape(-1, self.masks, *purified.shape[1:])
        return drawn if self.aggregate == "vote" else drawn.mean(dim=1)

    def _pass(self, images: Tensor, step: int) -> Tensor:
        if not isinstance(self.purifier, Purifier) or self.mask_ratio == 0:
            purified: Tensor = self.purifier(images)
            return purified
        rows, columns = self.purifier.mae.grid(images)
        noise = None
        if self.seed is not None:
            fixed = self._drawn(rows * columns, images.device, self.seed)[step]
            noise = fixed.repeat(len(images) // self.masks, 1)
        return self.purifier.mae(images, self.mask_ratio, noise=noise).images.clamp(0, 1)  # type: ignore[no-any-return]

    def _drawn(self, patches: int, device: torch.device, seed: int) -> Tensor:
        """What the frozen masks are made of, `(passes, V, L)`: drawn once for a size of images, not in every call."""
        key = patches, device
        if key not in self._fixed:
            if len(self._fixed) >= _DRAWN:
                del self._fixed[next(iter(self._fixed))]
            with torch.inference_mode(False):
                generator = torch.Generator().manual_seed(seed)
                self._fixed[key] = torch.rand(self.passes, self.masks, patches, generator=generator).to(device)
        return self._fixed[key]

    def frozen(self, seed: int) -> "RepeatedPurifier":
        """The same with its masks fixed: a deterministic function of the image alone, whatever batch it stands in.

        Args:
            seed: Of the masks.
        """
        return RepeatedPurifier(self.purifier, self.mask_ratio, self.masks, self.aggregate, self.passes, seed)

    def extra_repr(self) -> str:
        """What the weights do not say; it goes into fingerprints."""
        fixed = "" if self.seed is None else f", seed={self.seed}"
        options = f"mask_ratio={self.mask_ratio}, masks={self.masks}, aggregate={self.aggregate}, passes={self.passes}"
        return options + fixed


class Voting(nn.Module):
    """A classifier that sees V versions of an image and averages the class probabilities.

    Args:
        classifier: Images `(B, 3, H, W)` in [0, 1] to logits `(B, K)`.
    """

    def __init__(self, classifier: nn.Module) -> None:
        super().__init__()
        self.classifier = classifier
        self.train(classifier.training)

    def forward(self, images: Tensor) -> Tensor:
        """Vote.

        Args:
            images: `(B, V, 3, H, W)` in [0, 1], V versions of each image.

        Returns:
            `(B, K)`, the logarithm of the mean probabilities: logits whose softmax these are.
        """
        logits: Tensor = self.classifier(images.flatten(0, 1))
        logs = logits.log_softmax(dim=1).reshape(*images.shape[:2], -1)
        return logs.logsumexp(dim=1) - math.log(images.shape[1])
