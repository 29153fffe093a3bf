"""Whether gradients are there, and are those of the function: the probes S1 and S2."""

import copy

import torch
import torch.nn.functional as F
from torch import Tensor

from maep_lightning.attacks.simple import random_corner
from maep_lightning.attacks.target import Target
from maep_lightning.evaluation.sanity.findings import Case, Finding

COMPARED, DIRECTIONS = 16, 4
"""At most so many images have their slopes compared, along so many random directions."""
GRADIENT_FREE = "no gradient flows: the model is detached, or computes under no_grad or with integers"


def gradients(case: Case) -> Finding:
    """S1: gradients of cross-entropy and margin are finite and not zero, at the images and within the ball."""
    numbers: dict[str, float] = {}
    generator = torch.Generator().manual_seed(case.plan.seed)
    inside = random_corner(case.images, float(case.plan.eps) / 2, case.plan.norm, generator)
    for where, images in {"start": case.images, "inside": inside}.items():
        for loss in ("ce", "margin"):
            gradient = _gradient(case.whole, images, case.labels, loss)
            if gradient is None:
                return Finding(case.severity, GRADIENT_FREE, {"detached": 1.0})
            flat = gradient.flatten(1)
            numbers[f"nonfinite_{loss}_{where}"] = float((~flat.isfinite().all(dim=1)).float().mean())
            numbers[f"zero_{loss}_{where}"] = float((flat == 0).all(dim=1).float().mean())
    nonfinite = max(value for name, value in numbers.items() if name.startswith("nonfinite"))
    zero = max(value for name, value in numbers.items() if name.startswith("zero_margin"))
    saturated = max(value for name, value in numbers.items() if name.startswith("zero_ce"))
    if nonfinite > 0:
        return Finding(case.severity, f"NaN or infinite gradients for {nonfinite:.0%} of the samples", numbers)
    if zero > 0.01:
        detail = f"zero gradients for {zero:.0%} of the samples: quantised, saturated or detached"
        return Finding(case.severity, detail, numbers)
    if saturated > 0.01:
        return Finding("warn", f"cross-entropy has zero gradients for {saturated:.0%} of the samples", numbers)
    return Finding("pass", "all finite and none zero", numbers)


def finite_differences(case: Case) -> Finding:
    """S2: the gradient through everything predicts what the function does along random and adversarial directions."""
    coarse = _compare_slopes(case, torch.float32, 1e-3)
    fine = _compare_slopes(case, torch.float64, 1e-7) or coarse
    if coarse is None or fine is None:
        return Finding(case.severity, GRADIENT_FREE, {"detached": 1.0})
    (error, cosine), (_, smoothness) = fine, coarse
    numbers = {"median_relative_error": error, "cosine": cosine, "cosine_over_0.001": smoothness}
    text = f"median relative error {error:.2g}, cosine {cosine:.3f} against central differences"
    if error > 0.05 or cosine < 0.9:
        detail = f"gradients are not those of the function ({text}): part of it is detached, replaced or shattered"
        return Finding(case.severity, detail, numbers)
    if smoothness < 0.9:
        detail = f"shattered gradients: over steps of 0.001 the function goes elsewhere (cosine {smoothness:.3f})"
        return Finding(case.severity, detail, numbers)
    return Finding("pass" if error <= 0.01 else "warn", text, numbers)


def _gradient(target: Target, images: Tensor, labels: Tensor, loss: str) -> Tensor | None:
    """Gradient `(m, C, H, W)` of a loss at the images; None where none flows."""
    point = images.clone().requires_grad_()
    with target.guarded(), torch.enable_grad():
        logits = target(point)
        if not logits.requires_grad:
            return None
        if loss == "ce":
            value = F.cross_entropy(logits, labels, reduction="sum")
        else:
            value = _margins(logits, labels, _rival(logits, labels)).sum()
        (gradient,) = torch.autograd.grad(value, point)
    return gradient.detach()


def _rival(logits: Tensor, labels: Tensor) -> Tensor:
    return logits.detach().scatter(1, labels[:, None], -torch.inf).argmax(dim=1)


def _margins(logits: Tensor, labels: Tensor, rival: Tensor) -> Tensor:
    return (logits.gather(1, labels[:, None]) - logits.gather(1, rival[:, None])).squeeze(1)


def _compare_slopes(case: Case, dtype: torch.dtype, step: float) -> tuple[float, float] | None:
    """Median relative error and cosine of slopes of the margin, by autograd and by central differences.

    None where no gradient flows, or where the networks cannot compute in this type.
    """
    count = min(COMPARED, len(case.labels))
    # Away from the ends of [0, 1], where a purifier that clamps has a kink.
    images, labels = (0.1 + 0.8 * case.images[:count]).to(dtype), case.labels[:count]
    stages = [copy.deepcopy(stage).requires_grad_(False).to(dtype) for stage in case.whole.stages]
    generator = torch.Generator().manual_seed(case.plan.seed)
    corners = [random_corner(torch.full_like(images, 0.5), 0.5, "Linf", generator) * 2 - 1 for _ in range(DIRECTIONS)]

    def forward(points: Tensor) -> Tensor:
        for stage in stages:
            points = stage(points)
        return points

    try:
        with case.whole.guarded(), torch.no_grad():
            rival = _rival(forward(images), labels)
            point = images.clone().requires_grad_()
            with torch.enable_grad():
                value = _margins(forward(point), labels, rival)
                if not value.requires_grad or value.dtype != dtype:
                    return None
                (gradient,) = torch.autograd.grad(value.sum(), point)
            exact, numeric = [], []
            for direction in (*corners, gradient.sign()):
                ends = [_margins(forward(images + sign * step * direction), labels, rival) for sign in (1, -1)]
                numeric.append((ends[0] - ends[1]) / (2 * step))
                exact.append((gradient * direction).flatten(1).sum(1))
    except (RuntimeError, TypeError):
        if dtype == torch.float64:
            return None
        raise
    one, other = torch.stack(exact).double().flatten(), torch.stack(numeric).double().flatten()
    if not bool(one.isfinite().all() & other.isfinite().all()):
        return float("inf"), -1.0
    larger = torch.maximum(one.abs(), other.abs())
    error = torch.where(larger > 0, (one - other).abs() / larger.clamp(min=1e-30), torch.zeros_like(larger))
    cosine = F.cosine_similarity(one, other, dim=0) if bool(larger.any()) else torch.ones(())
    return float(error.median()), float(cosine)
