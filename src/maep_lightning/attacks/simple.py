"""The simple attacks of the literature, which disturb purifiers more than their age suggests, and random noise.

Their perturbations are coarse and transferable: a purifier that removes AutoAttack's fine noise may leave them.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from maep_lightning.attacks.pgd import lengths, pgd
from maep_lightning.attacks.threat import Norm
from maep_lightning.functional.resampling import resample


@dataclass(frozen=True)
class Recipe:
    """Settings of a simple attack.

    Attributes:
        steps: Gradient steps.
        step: Length of a step, as a fraction of the radius.
        momentum: Decay of the accumulated gradient; None for no momentum.
        random_start: Whether to start from a random point, as in `pgd`.
        diversity: Probability with which a step's gradient is taken through `diverse_input`.
    """

    steps: int
    step: float
    momentum: float | None = None
    random_start: bool = False
    diversity: float = 0.0


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

RECIPES = SIMPLE | {
    "di-mi-fgsm": Recipe(10, 0.1, momentum=1.0, diversity=0.5),  # Xie et al. 2019, M-DI2-FGSM
}
"""All that `simple_attack` knows; those beyond `SIMPLE` are measured where they are named, not in `blind_worst`."""

RESTARTS = tuple(name for name in SIMPLE if name.startswith("pgd"))

NOISE_DRAWS = 100

_LEAST_SHRUNK = 0.9


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
        name: One of `RECIPES`.
        eps: Radius on the [0, 1] scale.
        norm: `Linf` or `L2`; in L2 a step is of the gradient's direction in place of its sign.
        generator: Source of random starts and diverse inputs, on the device of `images`; the global one if None.

    Returns:
        The last iterate `(B, C, H, W)`, in [0, 1] and in the ball.

    Raises:
        ValueError: If the radius cannot be meant, or the norm is not supported.
    """
    recipe = RECIPES[name]
    return pgd(
        diversified(model, recipe.diversity, generator), images, labels, eps, recipe.step * eps, recipe.steps, norm,
        recipe.random_start, generator, momentum=recipe.momentum,
    )  # fmt: skip


def diversified(
    model: Callable[[Tensor], Tensor], probability: float, generator: torch.Generator | None = None
) -> Callable[[Tensor], Tensor]:
    """A model whose images go through `diverse_input` with this probability, anew at each call; itself at 0.

    Args:
        model: Images `(B, C, H, W)` in [0, 1] to logits `(B, K)`.
        probability: As in `diverse_input`; so is `generator`.
        generator: Source of the draws.
    """
    if not probability:
        return model
    return lambda images: model(diverse_input(images, probability, generator))


def diverse_input(images: Tensor, probability: float, generator: torch.Generator | None = None) -> Tensor:
    """Images shrunk a little and put at a random place of a black canvas of their size, or left as they are.

    The input diversity of Xie et al. 2019, "Improving transferability of adversarial examples with input diversity": a
    perturbation that survives it does not depend on being aligned with the pixels. The paper enlarges images of 299
    pixels to 330; classifiers of one size need the size kept, so the shrunk side is uniform from 0.9 of the whole one,
    as in torchattacks. One draw serves the whole batch.

    Args:
        images: `(B, C, H, W)` in [0, 1].
        probability: That they are changed at all.
        generator: Source of the draws; the CPU's global one if None, from which nothing has to be fetched.

    Returns:
        `(B, C, H, W)` in [0, 1], differentiable.
    """
    device = torch.device("cpu") if generator is None else generator.device
    chance, share, down, right = torch.rand(4, device=device, generator=generator).tolist()
    if chance >= probability:
        return images
    h, w = images.shape[-2:]
    height, width = (int(side * (_LEAST_SHRUNK + (1 - _LEAST_SHRUNK) * share)) for side in (h, w))
    top, left = int(down * (h - height + 1)), int(right * (w - width + 1))
    small = resample(images, height, width, antialias=False)
    return F.pad(small, (left, w - width - left, top, h - height - top))


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
