"""Images, labels and networks as handed in: looked at before the first attack, so that nothing spoils all of them."""

from collections.abc import Sequence

import torch
from torch import Tensor

from maep_lightning.attacks.autoattack import check_inputs
from maep_lightning.attacks.target import Target, isolated_rng
from maep_lightning.evaluation.plan import Plan
from maep_lightning.functional.pixels import unit_range

ALONE = ("none", "blind", "whitebox")
"""Threats that are measured on a classifier without a purifier, where blind and white-box are the same attack."""


def pixels(images: Tensor, device: torch.device) -> Tensor:
    """Images as float32 in [0, 1] on the device, outside inference mode."""
    with torch.inference_mode(False):
        return unit_range(images.clone().to(device)).float()


def checked_data(images: Tensor, labels: Tensor, n: int | None) -> tuple[Tensor, Tensor]:
    """The first `n` images and labels, on the CPU.

    Raises:
        ValueError: If shapes or types do not fit, or there are fewer.
    """
    if images.ndim != 4 or labels.shape != images.shape[:1]:
        raise ValueError(
            f"Give images (N, C, H, W) and labels (N,); got {tuple(images.shape)} and {tuple(labels.shape)}."
        )
    if n is not None and n > len(labels):
        raise ValueError(f"n = {n}, but there are only {len(labels)} images.")
    if len(labels) == 0:
        raise ValueError("There is no image to evaluate.")
    if images.dtype != torch.uint8 and not images.is_floating_point():
        raise ValueError(f"Images must be uint8, or floating point in [0, 1], not {images.dtype}.")
    return images[:n].cpu(), labels[:n].long().cpu()


def class_mismatch(logits: int, class_names: Sequence[str] | None) -> str:
    """Compare the width of a classifier with the classes of the data.

    Args:
        logits: Number of the classifier's logits K.
        class_names: One name a class of the data; None where they are not known.

    Returns:
        What to say of a classifier with more logits than there are classes, which one that may also reject has; empty
        where the two agree, as for ImageNet's 1000 in the label space `imagenet`.

    Raises:
        ValueError: If there are fewer logits than classes.
    """
    classes = logits if class_names is None else len(class_names)
    hint = " Its classes are ImageNet's: give --data.label_space imagenet for a part of them." if logits == 1000 else ""
    if logits < classes:
        raise ValueError(
            f"The classifier has {logits} logits, and the data have {classes} classes, so that some could never be"
            " right: give a classifier of this data set, or the data set that it was trained on."
        )
    if logits == classes:
        return ""
    return (
        f"The classifier has {logits} logits, and the data have {classes} classes: predictions beyond them are wrong,"
        f" and go by their number.{hint or ' Was it trained on other data?'}"
    )


def preflight(
    bare: Target,
    defended: Target | None,
    surrogate: Target | None,
    images: Tensor,
    labels: Tensor,
    plan: Plan,
    device: torch.device,
) -> tuple[str, ...]:
    """Find out before the first attack what would spoil all of them, and which systems are stochastic.

    Args:
        bare: The classifier.
        defended: The purifier before the classifier; None for no purifier.
        surrogate: The surrogate classifier; None for none.
        images: The evaluated images, `(N, C, H, W)`.
        labels: `(N,)`.
        plan: The plan.
        device: Where to compute.

    Returns:
        Of `classifier` and `whole` those whose logits change with the random numbers.

    Raises:
        ValueError: If something cannot be evaluated as it is.
    """
    if defended is None and (asked := [name for name in plan.threats if name not in ALONE]):
        raise ValueError(
            f"{' and '.join(asked)} are measured on a classifier behind a purifier, and there is none. Leave them out,"
            f" since without a purifier only {', '.join(ALONE)} are measured, or give the purifier identity."
        )
    roles = {"The classifier": bare, "The purifier": defended, "The surrogate": surrogate}
    targets = {name: target for name, target in roles.items() if target is not None}
    for name, target in targets.items():
        if target.device != device:
            raise ValueError(f"{name} is on {target.device}, but the evaluation on {device}; move it with .to(...).")
    named = plan.named.values()
    with_square = {"square", "fixed_coins"} | ({"blind", "whitebox"} if plan.version == "standard" else set())
    if with_square & set(plan.threats) or any("square" in attacks for _, attacks in named):
        plan.settings.check_image_size(*images.shape[-2:])
    differentiating = {kind for kind, attacks in named if set(attacks) != {"square"}}
    exact = {"whitebox", "eot", "fixed_coins"} & differentiating
    differentiated = [bare] if exact or {"blind", "blind_worst", "bpda"} & differentiating else []
    differentiated += [surrogate] if surrogate is not None else []
    differentiated += [defended] if defended is not None and exact else []
    first = pixels(images[:1], device)
    for target in targets.values():
        with target.guarded(), isolated_rng(plan.seed, device):
            check_inputs(images, labels, target.num_classes(first))
            if target not in differentiated:
                continue
            point = first.clone().requires_grad_()
            with torch.enable_grad():
                logits = target(point)
            if not logits.requires_grad:
                through = "the purifier and the classifier" if target is defended else "the classifier"
                raise ValueError(
                    f"No gradient flows through {through}: a gradient attack would find nothing, and that is no"
                    " robustness. Look for detach(), no_grad or integer operations, or leave out the white-box threat."
                )
    some = pixels(images[:8], device)
    named_systems = {"classifier": bare, "whole": defended}
    return tuple(name for name, target in named_systems.items() if target is not None and target.is_random(some))
