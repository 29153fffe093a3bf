"""The simple attacks of the literature, which disturb purifiers more than their age suggests, and random noise.

Their perturbations are coarse and transferable: a purifier that removes AutoAttack's fine noise may leave them.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from maep_lightning.attacks.pgd import lengths, pgd
from maep_lightning.attacks.threat import Norm


@dataclass(frozen=True)
class Recipe:
    """Settings of a simple attack.

    Attributes:
        steps: Gradient steps.
        step: Length of a step, as a fraction of the radius.
        momentum: Decay of the accumulated gradient; None for no momentum.
        random_start: Whether to start from a random point of the ball.
    """

    steps: int
    step: float
    momentum: float | None = None
    random_start: bool = False


SIMPLE = {
    "fgsm": Recipe(1, 1.0),  # Goodfellow et al. 2015
    "bim": Recipe(10, 0.1),  # Kurakin et al. 2017
    "mi-fgsm": Recipe(10, 0.1, momentum=1.0),  # Dong et al. 2018, Algorithm 1
    "pgd": Recipe(40, 0.1, random_start=True),  # Madry et al. 2018
    "pgd-2": Recipe(40, 0.1, random_start=True),
    "pgd-3": Recipe(40, 0.1, random_start=True),
    "pgd-4": Recipe(40, 0.1, random_start=True),
    "pgd-5": Recipe(40, 0.1, random_start=True),
}
"""The attacks by name; `pgd-2` to `pgd-5` are further random starts."""

RESTARTS = tuple(name for name in SIMPLE if name.startswith("pgd"))

NOISE_DRAWS = 100


def simple_attack(
    model: Callable[[Tensor], Tensor],
    images: Tensor,
    labels: Tensor,
    name: str,
    eps: float,
    norm: Norm = "Linf",
    generator: torch.Generator | None = None,
) -> Tensor:
    """Attack by name.

    Args:
        model: Images `(B, C, H, W)` in [0, 1] to logits `(B, K)`.
        images: `(B, C, H, W)` in [0, 1].
        labels: `(B,)`.
        name: One of `SIMPLE`.
        eps: Radius on the [0, 1] scale.
        norm: `Linf` or `L2`; in L2 a step is of the gradient's direction in place of its sign.
        generator: Source of random starts, on the device of `images`; the global one if None.

    Returns:
        The last iterate `(B, C, H, W)`, in [0, 1] and in the ball.

    Raises:
        ValueError: If the radius cannot be meant, or the norm is not supported.
    """
    recipe = SIMPLE[name]
    return pgd(
        model, images, labels, eps, recipe.step * eps, recipe.steps, norm, recipe.random_start, generator,
        momentum=recipe.momentum,
    )  # fmt: skip


def random_corner(images: Tensor, eps: float, norm: Norm, generator: torch.Generator) -> Tensor:
    """Images moved to a random extreme point of the ball, without a look at any network.

    Args:
        images: `(B, C, H, W)` in [0, 1].
        eps: Radius on the [0, 1] scale.
        norm: `Linf`: each value moves by eps up or down; `L2`: a random direction; `L1`: one value moves by eps.
        generator: Source of the draw, on the CPU, so that every device sees the same.

    Returns:
        `(B, C, H, W)` in [0, 1].
    """
    if norm == "Linf":
        delta = torch.randint(0, 2, images.shape, generator=generator).to(images.dtype) * 2 - 1
    elif norm == "L2":
        delta = torch.randn(images.shape, generator=generator)
        delta = delta / lengths(delta, 2)
    else:
        flat = images[0].numel()
        places = torch.randint(0, flat, (len(images), 1), generator=generator)
        signs = torch.randint(0, 2, (len(images), 1), generator=generator).to(images.dtype) * 2 - 1
        delta = torch.zeros(len(images), flat).scatter(1, places, signs).view(images.shape)
    return (images + eps * delta.to(images.device)).clamp(0, 1)
