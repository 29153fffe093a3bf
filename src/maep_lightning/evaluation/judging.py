"""Judging attacked images: only what an eager float32 forward pass confirms counts as broken."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from maep_lightning.attacks.target import MOST_SUSPECTS, Target
from maep_lightning.attacks.threat import Norm

TOLERANCE = 1e-6
"""Allowed excess over eps: float32 rounding of image + perturbation."""
REPAIRABLE = 1e-4
"""Relative excess that is taken for rounding (L1 projections sum thousands of terms) and shrunk away."""


@dataclass(frozen=True)
class Verdict:
    """What a judge says of images.

    Attributes:
        prediction: `(B,)` int64; of several draws the majority's, where a tie counts against the label.
        margin: `(B,)` float32, logit of the label minus the largest other; of several draws the share of them that
            gave the label minus that of the most frequent other class.
        right: `(B,)` int32, draws that gave the label.
        finite: `(B,)` bool, whether image and logits hold neither NaN nor infinity.
    """

    prediction: Tensor
    margin: Tensor
    right: Tensor
    finite: Tensor


def judge(target: Target, images: Tensor, labels: Tensor) -> Verdict:
    """Classify images, by `target.draws` calls.

    The random numbers of the calls are the caller's to seed. A row's depend on the shape of the whole batch.

    Args:
        target: The judge.
        images: `(B, C, H, W)` in [0, 1].
        labels: `(B,)`.
    """
    own = labels[:, None]
    with target.guarded(), torch.no_grad():
        score = target(images)
        finite = score.isfinite().all(dim=1) & images.flatten(1).isfinite().all(dim=1)
        right = (score.argmax(dim=1) == labels).int()
        if target.draws > 1:
            votes = F.one_hot(score.argmax(dim=1), score.shape[1])
            for _ in range(target.draws - 1):
                logits = target(images)
                finite &= logits.isfinite().all(dim=1)
                votes += F.one_hot(logits.argmax(dim=1), score.shape[1])
            right = votes.gather(1, own).squeeze(1).int()
            score = votes.to(score.dtype) / target.draws
    margin = score.gather(1, own).squeeze(1) - score.scatter(1, own, -torch.inf).amax(dim=1)
    prediction = score.argmax(dim=1)
    if target.draws > 1:
        prediction = torch.where(margin > 0, labels, score.scatter(1, own, -torch.inf).argmax(dim=1))
    return Verdict(prediction, torch.where(finite, margin, torch.zeros_like(margin)), right, finite)


def distance(attacked: Tensor, images: Tensor, norm: Norm) -> Tensor:
    """Size of a perturbation, in float64.

    Args:
        attacked: `(B, C, H, W)`.
        images: The same shape.
        norm: `Linf`, `L2` or `L1`.

    Returns:
        `(B,)`.
    """
    order = {"Linf": torch.inf, "L2": 2.0, "L1": 1.0}[norm]
    size: Tensor = torch.linalg.vector_norm((attacked.double() - images.double()).flatten(1), order, dim=1)
    return size


def confine(attacked: Tensor, images: Tensor, norm: Norm, eps: float) -> tuple[Tensor, Tensor]:
    """Bring attacked images wholly into the threat model where rounding took them out of it.

    Args:
        attacked: `(B, C, H, W)`.
        images: The same shape, in [0, 1].
        norm: `Linf`, `L2` or `L1`.
        eps: Radius.

    Returns:
        The attacked images, and `(B,)` bool: whether they are finite, in [0, 1] and within eps + 1e-6.
    """
    near = ((attacked >= -REPAIRABLE) & (attacked <= 1 + REPAIRABLE)).flatten(1).all(dim=1)
    confined = attacked.clamp(0, 1)
    size = distance(confined, images, norm)
    slightly = (size > eps + TOLERANCE) & (size <= eps * (1 + REPAIRABLE))
    if bool(slightly.any()):
        scale = torch.where(slightly, eps / size, torch.ones_like(size)).view(-1, 1, 1, 1)
        shrunk = (images.double() + (confined.double() - images.double()) * scale).to(confined.dtype)
        confined = torch.where(slightly.view(-1, 1, 1, 1), shrunk, confined)
        size = distance(confined, images, norm)
    return confined, near & (size <= eps + TOLERANCE)


def suspects(points: list[Tensor], images: Tensor, norm: Norm, eps: float) -> Tensor:
    """Samples that a point where the gradient was not finite may belong to; rather too many than too few.

    Args:
        points: `(C, H, W)` each; more than `MOST_SUSPECTS` may belong to all samples.
        images: The samples, `(B, C, H, W)`.
        norm: `Linf`, `L2` or `L1`.
        eps: Radius; APGD and Square stay within 3 eps. A point far from all samples, as FAB visits, may be of any.

    Returns:
        `(B,)` bool.
    """
    if len(points) > MOST_SUSPECTS:
        return torch.ones(len(images), dtype=torch.bool, device=images.device)
    found = torch.zeros(len(images), dtype=torch.bool, device=images.device)
    # A point that is NaN itself descends from a finite one at which the gradient was not.
    finite = [point for point in points if bool(point.isfinite().all())]
    for point in finite or points[:1]:
        near = distance(point.expand_as(images), images, norm) <= 3 * eps + TOLERANCE
        found |= near if bool(near.any()) else torch.ones_like(near)
    return found
