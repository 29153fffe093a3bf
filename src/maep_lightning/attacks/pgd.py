"""Projected gradient descent, the attack that makes training pairs."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from maep_lightning.attacks.threat import Norm, check_radius

EOT_STEPS, EOT_STEP = 200, 0.007 / (8 / 255)
"""Steps of PGD with expectation over draws, and the length of one as a fraction of the radius: Lee and Kim 2023,
"Robust evaluation of diffusion-based adversarial purification" (0.007 at 8/255)."""


def pgd(
    model: Callable[[Tensor], Tensor],
    images: Tensor,
    labels: Tensor,
    eps: float,
    step_size: float,
    steps: int,
    norm: Norm = "Linf",
    random_start: bool = True,
    generator: torch.Generator | None = None,
    draws: int = 1,
) -> Tensor:
    """Maximise the cross-entropy of a classifier inside a ball around each image (Madry et al. 2018).

    Args:
        model: Images `(B, C, H, W)` in [0, 1] to logits `(B, K)`.
        images: `(B, C, H, W)` in [0, 1].
        labels: `(B,)`.
        eps: Radius on the [0, 1] scale.
        step_size: Length of a step on the [0, 1] scale.
        steps: Number of steps; each costs one forward and one backward pass a draw.
        norm: `Linf` or `L2`.
        random_start: Whether to start from a random point of the ball instead of the image.
        generator: Source of the start, on the device of `images`; the global one if None.
        draws: Calls of a stochastic model over which each gradient is averaged (EOT, Athalye et al. 2018).

    Returns:
        Adversarial images `(B, C, H, W)` in [0, 1], detached.

    Raises:
        ValueError: If `eps` is above 1 in Linf, or the norm is not supported.
    """
    check_radius(eps, norm)
    if norm not in ("Linf", "L2"):
        raise ValueError(f"pgd supports Linf and L2, not {norm}; AutoAttack's components cover L1.")
    delta = torch.zeros_like(images)
    if random_start:
        delta = torch.rand(images.shape, device=images.device, generator=generator) * 2 - 1
        delta = delta * eps if norm == "Linf" else _project_l2(delta, eps)
    for _ in range(steps):
        adversarial = (images + delta).clamp(0, 1).requires_grad_()
        gradient = torch.zeros_like(images)
        for _ in range(draws):
            with torch.enable_grad():
                loss = F.cross_entropy(model(adversarial).float(), labels, reduction="sum")
                gradient += torch.autograd.grad(loss, adversarial)[0]
        delta = adversarial.detach() - images
        if norm == "Linf":
            delta = (delta + step_size * gradient.sign()).clamp(-eps, eps)
        else:
            length = gradient.flatten(1).norm(dim=1).clamp(min=1e-12).view(-1, 1, 1, 1)
            delta = _project_l2(delta + step_size * gradient / length, eps)
    return (images + delta).clamp(0, 1).detach()


def _project_l2(delta: Tensor, eps: float) -> Tensor:
    length: Tensor = delta.flatten(1).norm(dim=1).clamp(min=1e-12).view(-1, 1, 1, 1)
    return delta * (eps / length).clamp(max=1)
