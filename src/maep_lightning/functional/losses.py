"""The losses of masked pre-training and of purification."""

from collections.abc import Sequence
from typing import Literal, get_args

import torch
from torch import Tensor

PixelLoss = Literal["l1", "l2", "charbonnier"]


def pixel_distance(prediction: Tensor, target: Tensor, kind: PixelLoss = "l1") -> Tensor:
    """Element-wise distance between two tensors of the same shape.

    Args:
        prediction: Any shape.
        target: The same shape.
        kind: `l1` (the paper's purification loss), `l2` (squared) or `charbonnier` (sqrt(d^2 + 1e-6)).

    Returns:
        The distances, in the shape of the input.

    Raises:
        ValueError: If `kind` is unknown.
    """
    difference = prediction - target
    if kind == "l1":
        return difference.abs()
    if kind == "l2":
        return difference.square()
    if kind == "charbonnier":
        return (difference.square() + 1e-6).sqrt()
    raise ValueError(f"Unknown pixel loss {kind!r}; choose one of {', '.join(get_args(PixelLoss))}.")


def feature_distance(features: Sequence[Tensor], target: Sequence[Tensor]) -> Tensor:
    """How far a classifier's layers are from what they are to be: the loss of the feature-guided denoiser.

    Liao et al. 2018, "Defense against Adversarial Attacks Using High-Level Representation Guided Denoiser", with each
    layer's distance as a share of its size, so that layers of any scale weigh the same.

    Args:
        features: One tensor of any shape a layer.
        target: The same shapes.

    Returns:
        A scalar: the mean over layers of |f - t|_1 / |t|_1.
    """
    shares = [(f - t).abs().mean() / t.abs().mean().clamp_min(1e-12) for f, t in zip(features, target, strict=True)]
    return torch.stack(shares).mean()


def masked_patch_loss(prediction: Tensor, target: Tensor, mask: Tensor, kind: PixelLoss = "l2") -> Tensor:
    """Mean distance over the removed patches: the loss of masked autoencoders (He et al. 2022, Eq. (1) of MAEP).

    Args:
        prediction: Patches `(B, L, P)`.
        target: Patches `(B, L, P)`.
        mask: `(B, L)`, 1 for removed patches. With no removed patch at all (mask ratio 0) the loss is 0, not NaN.
        kind: As in `pixel_distance`; MAE uses `l2`.

    Returns:
        A scalar.
    """
    per_patch = pixel_distance(prediction, target, kind).mean(dim=-1)
    return (per_patch * mask).sum() / mask.sum().clamp(min=1)


def visible_patch_loss(prediction: Tensor, target: Tensor, mask: Tensor, kind: PixelLoss = "l1") -> Tensor:
    """Mean distance over the patches that stayed: what the purification loss adds to the masked one in MAEP's Eq. (12).

    Args:
        prediction: Patches `(B, L, P)`.
        target: Patches `(B, L, P)`.
        mask: `(B, L)`, 1 for removed patches.
        kind: As in `pixel_distance`.

    Returns:
        A scalar.
    """
    return masked_patch_loss(prediction, target, 1 - mask, kind)


def normalize_patches(patches: Tensor) -> Tensor:
    """Patches standardised by their own mean and variance (`norm_pix_loss` of MAE).

    Args:
        patches: `(B, L, P)`.

    Returns:
        `(B, L, P)`, `(x - mean) / sqrt(var + 1e-6)` with the unbiased variance.
    """
    mean = patches.mean(dim=-1, keepdim=True)
    return (patches - mean) / torch.sqrt(patches.var(dim=-1, keepdim=True) + 1e-6)
