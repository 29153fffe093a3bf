"""Whether a frozen classifier gets its images as it was trained to, told by its accuracy."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor, nn

from maep_lightning.attacks.target import check_logits, check_precision, device_of
from maep_lightning.functional.pixels import unit_range
from maep_lightning.models.layers import Normalize
from maep_lightning.models.preprocessing import (
    NORMALIZATIONS,
    NormalizedClassifier,
    ResizedClassifier,
    normalization_of,
)

ALTERNATIVES = ("none", "half", "imagenet", "255")
"""Normalisations that differ enough to show; those of CIFAR and CLIP are as good as that of ImageNet to a network."""

SIGNIFICANT = 1e-3
"""Most probability that chance may have of a difference that is told as one."""

SUSPECT = 0.05
"""Most probability that chance may have of a difference that is worth a second look, at more images."""

FURTHER = 1024
"""Images of a second look."""


@dataclass(frozen=True)
class NormalizationCheck:
    """What a check found.

    Attributes:
        n: Images that were classified.
        declared: How many of them correctly, as the classifier is.
        correct: How many under each alternative; after a second look, under the one that it was about.
        better: The alternative that is significantly better; None for none.
        warnings: What is wrong, in sentences.
    """

    n: int
    declared: int
    correct: dict[str, int]
    better: str | None
    warnings: tuple[str, ...]


def check_normalization(
    classifier: nn.Module,
    images: Tensor,
    labels: Tensor,
    batch_size: int = 64,
    more: Callable[[], tuple[Tensor, Tensor]] | None = None,
    device: torch.device | None = None,
) -> NormalizationCheck:
    """Compare a classifier's accuracy with what it would be behind other normalisations.

    A network whose normalisation is not known, because it is foreign code, is taken for one that wants [0, 1]. An
    alternative is better if it wins the sign test on the images that only one of the two gets right.

    Args:
        classifier: Images `(B, 3, H, W)` in [0, 1] to logits `(B, K)`, in evaluation mode.
        images: `(N, 3, H, W)`, uint8, or floating point in [0, 1].
        labels: `(N,)`.
        batch_size: Images classified together.
        more: Gives a larger sample, images and labels; asked only where these leave it open whether one is better.
        device: Where images go for a classifier without weights; if None, where they are.

    Returns:
        What was found. Nothing is found in fewer than 16 images.

    Raises:
        ValueError: If the classifier is not in float32, or does not return logits `(B, K)` with K of at least 2.
    """
    check_precision(classifier)
    device = device_of(classifier) or device or images.device
    size = tuple(_size(classifier, images))
    counts = _count(classifier, images.to(device), labels.to(device), batch_size, ALTERNATIVES)
    if counts.n >= 16 and more is not None and SIGNIFICANT <= counts.chance < SUSPECT:
        images, labels = more()
        if len(labels) > counts.n:
            counts = _count(classifier, images.to(device), labels.to(device), batch_size, (counts.best,))
    n, declared, correct, best = counts.n, counts.declared, counts.correct, counts.best
    found = NormalizationCheck(n, declared, correct, None, size)
    if n < 16:
        return found
    if counts.chance < SIGNIFICANT:
        text = (
            f"The classifier is right on {declared} of {n} clean images as it is, and on {correct[best]}"
            f" behind the normalisation {best!r}: it was probably trained with that. Add norm={best} to"
            " classifier_name (in a transfer study: name), or to classifier where that begins with timm:, torchvision:"
            " or python:."
        )
        return replace(found, better=best, warnings=(*size, text))
    if _tail(max(declared, correct[best]), n, 1 / counts.classes) > SIGNIFICANT:
        text = (
            f"The classifier is right on {declared} of {n} clean images, no better than guessing among"
            f" {counts.classes} classes: are these its weights, and are the labels (up to {int(labels.max())}) in its"
            " order of classes? For a part of ImageNet's, see --data.label_space."
        )
        return replace(found, warnings=(*size, text))
    if counts.chance < SUSPECT:
        text = (
            f"The classifier is right on {declared} of {n} clean images as it is, and on {correct[best]} behind"
            f" norm={best}; not significant (p = {counts.chance:.2g}), but see what it was trained with."
        )
        return replace(found, warnings=(*size, text))
    return found


class _Counts(NamedTuple):
    n: int
    declared: int
    correct: dict[str, int]
    best: str
    chance: float
    """The probability of the best one's lead by chance."""
    classes: int


@torch.no_grad()
def _count(
    classifier: nn.Module, images: Tensor, labels: Tensor, batch_size: int, alternatives: Sequence[str]
) -> _Counts:
    """How many images the classifier gets right as it is, and behind some alternatives."""
    pixels = unit_range(images)
    own = normalization_of(classifier) or Normalize(*NORMALIZATIONS["none"]).to(images.device)

    def classify(name: str) -> Tensor:
        # The network's own normalisation undoes what is put before it, so what is left is the alternative.
        parts = torch.split(pixels, batch_size)
        if name:
            other = Normalize(*NORMALIZATIONS[name]).to(images.device)
            parts = tuple(own.inverse(other(part)) for part in parts)
        return torch.cat([check_logits(classifier(part)) for part in parts])

    logits = classify("")
    declared = logits.argmax(1) == labels
    right = {name: classify(name).argmax(1) == labels for name in alternatives}
    correct = {name: int(each.sum()) for name, each in right.items()}
    best = max(correct, key=lambda name: correct[name])
    wins, losses = int((right[best] & ~declared).sum()), int((declared & ~right[best]).sum())
    chance = _tail(wins, wins + losses, 0.5)
    return _Counts(len(labels), int(declared.sum()), correct, best, chance, logits.shape[1])


def _tail(hits: int, trials: int, probability: float) -> float:
    """The probability of at least so many hits by chance."""
    counts = torch.arange(hits, trials + 1, dtype=torch.float64)
    chance = torch.tensor(probability, dtype=torch.float64)
    log_prob = torch.distributions.Binomial(trials, chance).log_prob(counts)  # type: ignore[no-untyped-call]
    return float(log_prob.exp().sum())


def _size(classifier: nn.Module, images: Tensor) -> list[str]:
    """A warning where images are much smaller than those that published weights were trained on."""
    sizes = [m.trained_size for m in classifier.modules() if isinstance(m, NormalizedClassifier) and m.trained_size]
    side = min(images.shape[-2:])
    if not sizes or side >= sizes[0] / 2 or any(isinstance(m, ResizedClassifier) for m in classifier.modules()):
        return []
    return [
        f"The classifier was trained on images of {sizes[0]} pixels and gets {side}: add size={sizes[0]} to its name,"
        " and it will see them enlarged."
    ]
