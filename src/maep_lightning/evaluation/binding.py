"""A plan, networks and data brought together, checked, and turned into rungs."""

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from maep_lightning.attacks.target import Target, device_of
from maep_lightning.evaluation import fingerprint
from maep_lightning.evaluation.inputs import checked_data, pixels, preflight
from maep_lightning.evaluation.ladder import ladder
from maep_lightning.evaluation.ledger import Ledger
from maep_lightning.evaluation.plan import Manifest, Plan
from maep_lightning.evaluation.rungs import Rung
from maep_lightning.models.defended import stages


@dataclass(frozen=True)
class Bound:
    """A plan bound to networks and data, before anything is attacked.

    Attributes:
        images: The evaluated images, `(N, C, H, W)`, on the CPU.
        labels: `(N,)`.
        device: Where to compute.
        bare: The classifier.
        defended: The purifier before the classifier; None for no purifier.
        manifest: All that a result depends on.
        ledger: Of the run folder.
        rungs: Those of the plan.
    """

    images: Tensor
    labels: Tensor
    device: torch.device
    bare: Target
    defended: Target | None
    manifest: Manifest
    ledger: Ledger
    rungs: list[Rung]


def bind(
    classifier: nn.Module,
    purifier: nn.Module | None,
    images: Tensor,
    labels: Tensor,
    plan: Plan,
    run_dir: Path,
    device: torch.device | str | None,
    surrogate: nn.Module | None,
) -> Bound:
    """Bind a plan; the arguments are those of `evaluate`.

    Raises:
        ValueError: If the networks or the data cannot be evaluated as they are.
    """
    images, labels = checked_data(images, labels, plan.n)
    if device is None:
        device = device_of(classifier, purifier) or "cpu"
    device = torch.empty(0, device=device).device  # weights on `cuda` say that they are on `cuda:0`
    bare = Target(classifier, device=device)
    defended = None if purifier is None else Target(*stages(purifier, classifier), device=device)
    surrogate = surrogate if "transfer" in plan.threats else None
    other = None if surrogate is None else Target(surrogate, device=device)
    stochastic = preflight(bare, defended, other, images, labels, plan, device)
    classes = bare.num_classes(pixels(images[:1], device))
    manifest = Manifest.bind(plan, classifier, purifier, images, labels, classes, device.type, surrogate, stochastic)
    for target, name in ((bare, "classifier"), (defended, "whole")):
        if target is not None:
            target.draws = manifest.values[f"{name}_draws"]
    ledger = Ledger(run_dir / "ledger")
    rungs = ladder(plan, manifest, bare, defended, ledger, other)
    return Bound(images, labels, device, bare, defended, manifest, ledger, rungs)


def chunk_fingerprints(images: Tensor, labels: Tensor, size: int) -> list[str]:
    """Fingerprint of the images and labels of each chunk.

    Args:
        images: Those of the evaluation, `(N, C, H, W)`.
        labels: Theirs, `(N,)`.
        size: Samples in a chunk.
    """
    chunks = [slice(start, start + size) for start in range(0, len(labels), size)]
    return [fingerprint.of_tensors({"images": images[rows], "labels": labels[rows]}) for rows in chunks]
