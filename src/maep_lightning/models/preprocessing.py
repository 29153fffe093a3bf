"""What stands between images in [0, 1] and a classifier that somebody else trained: normalisation and input size."""

import difflib
from collections.abc import Sequence
from typing import NamedTuple

from torch import Tensor, nn

from maep_lightning.functional.resampling import resample
from maep_lightning.models.layers import Normalize

Statistics = tuple[Sequence[float], Sequence[float]]

NORMALIZATIONS: dict[str, Statistics] = {
    "none": ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0)),
    "imagenet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    "cifar10": ((0.4914, 0.4822, 0.4465), (0.2471, 0.2435, 0.2616)),
    # The mean of the images' own deviations, which much of the public code for CIFAR-10 divides by.
    "cifar10-per-image": ((0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)),
    "cifar100": ((0.5071, 0.4867, 0.4408), (0.2675, 0.2565, 0.2761)),
    "half": ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
    "clip": ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)),
    "255": ((0.0, 0.0, 0.0), (1 / 255, 1 / 255, 1 / 255)),
}
"""Mean and standard deviation by name; `half` scales to [-1, 1], `255` to pixels from 0 to 255."""


def parse_normalization(text: str) -> Statistics:
    """Mean and standard deviation from a text.

    Args:
        text: A key of `NORMALIZATIONS`, or `MEAN/STD`, each one number or three joined by colons.

    Returns:
        Three means and three standard deviations.

    Raises:
        ValueError: If the text is neither, or a deviation is not positive.
    """
    if text in NORMALIZATIONS:
        return NORMALIZATIONS[text]
    try:
        mean, std = ([float(number) for number in part.split(":")] for part in text.split("/"))
    except ValueError:
        close = difflib.get_close_matches(text, NORMALIZATIONS, n=1)
        hint = f" Did you mean {close[0]}?" if close else ""
        raise ValueError(
            f"Unknown normalisation {text!r}; known are {', '.join(NORMALIZATIONS)}, and MEAN/STD such as 0.5/0.25 or"
            f" 0.5:0.5:0.4/0.2:0.2:0.3.{hint}"
        ) from None
    if {len(mean), len(std)} - {1, 3} or min(std) <= 0:
        raise ValueError(f"The normalisation {text!r} needs one or three means, and as many positive deviations.")
    return mean * (3 // len(mean)), std * (3 // len(std))


def normalization_of(classifier: nn.Module) -> Normalize | None:
    """The first normalisation in a network; None where there is none that is known as one."""
    return next((module for module in classifier.modules() if isinstance(module, Normalize)), None)


def normalization_text(layer: Normalize) -> str:
    """What `parse_normalization` makes the same normalisation of, to the last bit of float32."""
    mean, std = (":".join(f"{value:.9g}" for value in part.flatten().tolist()) for part in (layer.mean, layer.std))
    return f"{mean}/{std}"


class Framing(NamedTuple):
    """How image files become images, where published weights were judged.

    Attributes:
        size: Side of the images in pixels.
        crop_pct: Share of the resized image's side that the square in the middle keeps.
        interpolation: How the file is resized, such as `bicubic`.
    """

    size: int
    crop_pct: float
    interpolation: str


class NormalizedClassifier(nn.Module):
    """A foreign network behind the normalisation it was trained with, so that it takes images in [0, 1].

    Args:
        network: Normalised images to logits.
        mean: Per-channel mean it was trained with.
        std: Per-channel standard deviation it was trained with.
        trained_size: Side in pixels of the images it was trained on, where that is known.

    Attributes:
        specification: How a library was asked for the network; the printed structure, which fingerprints are made of,
            does not show every option. Empty for other networks.
        packages: What holds the network's code, for fingerprints of evaluations.
        framings: How a library frames images for the weights that it fetched, by size; empty for other networks.
    """

    specification: str = ""
    packages: tuple[str, ...] = ()
    framings: tuple[Framing, ...] = ()

    def __init__(
        self, network: nn.Module, mean: Sequence[float], std: Sequence[float], trained_size: int | None = None
    ) -> None:
        super().__init__()
        self.trained_size = trained_size
        self.normalize = Normalize(mean, std)
        self.network = network

    def forward(self, images: Tensor) -> Tensor:
        """Images `(B, 3, H, W)` in [0, 1] to logits `(B, K)`.

        Raises:
            ValueError: If the network refuses images of that shape.
        """
        try:
            return self.network(self.normalize(images))  # type: ignore[no-any-return]
        except AssertionError as error:  # as timm and torchvision refuse
            raise ValueError(
                f"{type(self.network).__name__} does not take images {tuple(images.shape)}: {error} Where only the size"
                " is another, add an option such as size=224 to its name."
            ) from error


class ResizedClassifier(nn.Module):
    """A classifier that sees its images at another size: bilinear, antialiased, as a part of the classifier.

    Images are attacked and purified at the size they come in.

    Args:
        network: Images `(B, 3, size, size)` in [0, 1] to logits.
        size: Side in pixels.
    """

    def __init__(self, network: nn.Module, size: int) -> None:
        super().__init__()
        self.size = size
        self.network = network

    def forward(self, images: Tensor) -> Tensor:
        """Images `(B, 3, H, W)` in [0, 1] to logits `(B, K)`."""
        return self.network(resample(images, self.size, self.size))  # type: ignore[no-any-return]

    def extra_repr(self) -> str:
        """The size, which the fingerprint of a run holds."""
        return f"size={self.size}"


def unwrap(classifier: nn.Module) -> nn.Module:
    """The foreign network inside, whose weights its authors' file holds; a network of ours is itself."""
    while isinstance(classifier, (NormalizedClassifier, ResizedClassifier)):
        classifier = classifier.network
    return classifier
