"""Projected gradient descent, plain or with momentum: the iterative attacks of the literature are settings of it."""

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
    eps: float | Tensor,
    step_size: float | Tensor,
    steps: int,
    norm: Norm = "Linf",
    random_start: bool = True,
    generator: torch.Generator | None = None,
    draws: int = 1,
    momentum: float | None = None,
) -> Tensor:
    """Maximise the cross-entropy of a classifier inside a ball around each image (Madry et al. 2018).

    Args:
        model: Images `(B, C, H, W)` in [0, 1] to logits `(B, K)`.
        images: `(B, C, H, W)` in [0, 1].
        labels: `(B,)`.
        eps: Radius on the [0, 1] scale; of each sample, if a tensor `(B, 1, 1, 1)`, which is not checked.
        step_size: Length of a step on the [0, 1] scale; likewise.
        steps: Number of steps; each costs one forward and one backward pass a draw.
        norm: `Linf` or `L2`.
        random_start: Whether to start from a random point instead of the image: in Linf one of the ball, evenly drawn;
            in L2 one of the cube [-1, 1], projected, which is on the ball's surface for all but the smallest images.
        generator: Source of the start, on the device of `images`; the global one if None.
        draws: Calls of a stochastic model over which each gradient is averaged (EOT, Athalye et al. 2018).
        momentum: Decay of an accumulated gradient that is followed in place of the gradient, each gradient scaled to L1
            length 1 before it is added (Dong et al. 2018, Algorithm 1); None for none.

    Returns:
        Adversarial images `(B, C, H, W)` in [0, 1], detached.

    Raises:
        ValueError: If `eps` is above 1 in Linf, or the norm is not supported.
    """
    if not isinstance(eps, Tensor):
        check_radius(eps, norm)
    if norm not in ("Linf", "L2"):
        raise ValueError(f"pgd supports Linf and L2, not {norm}; AutoAttack's components cover L1.")
    delta = torch.zeros_like(images)
    if random_start:
        delta = torch.rand(images.shape, device=images.device, generator=generator) * 2 - 1
        delta = delta * eps if norm == "Linf" else _project_l2(delta, eps)
    velocity = torch.zeros_like(images)
    for _ in range(steps):
        adversarial = (images + delta).clamp(0, 1).requires_grad_()
        direction = torch.zeros_like(images)
        for _ in range(draws):
            with torch.enable_grad():
                loss = F.cross_entropy(model(adversarial).float(), labels, reduction="sum")
                direction += torch.autograd.grad(loss, adversarial)[0]
        if momentum is not None:
            direction = velocity = momentum * velocity + direction / lengths(direction, 1)
        delta = adversarial.detach() - images
        if norm == "Linf":
            delta = (delta + step_size * direction.sign()).clamp(-eps, eps)  # type: ignore[arg-type]
        else:
            delta = _project_l2(delta + step_size * direction / lengths(direction, 2), eps)
    return (images + delta).clamp(0, 1).detach()


def lengths(images: Tensor, order: int) -> Tensor:
    """Length of each sample of `(B, C, H, W)` in the L1 or L2 norm, `(B, 1, 1, 1)`, at least 1e-12."""
    length: Tensor = images.flatten(1).norm(p=order, dim=1).clamp(min=1e-12)
    return length.view(-1, 1, 1, 1)


def _project_l2(delta: Tensor, eps: float | Tensor) -> Tensor:
    return delta * (eps / lengths(delta, 2)).clamp(max=1)
