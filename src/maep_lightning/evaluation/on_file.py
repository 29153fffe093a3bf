"""Whether a folder holds this very evaluation already, or one of the same networks and images."""

import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from maep_lightning.evaluation.inputs import checked_data
from maep_lightning.evaluation.plan import Manifest, Plan, PlanChangedError
from maep_lightning.evaluation.results import PICTURES

SYSTEM = (
    "classifier_weights", "classifier_architecture", "purifier_weights", "purifier_architecture", "images", "labels"
)  # fmt: skip
"""What of a manifest says which networks and images it is about."""


def recall(
    classifier: nn.Module,
    purifier: nn.Module | None,
    images: Tensor,
    labels: Tensor,
    plan: Plan,
    run_dir: str | Path,
    device: torch.device | str,
) -> dict[str, Any] | None:
    """The content of `results.json`, if the folder holds this very evaluation, finished and complete; else None.

    An evaluation that was stopped before `report.html` is not finished, nor is one whose `results.json` is damaged:
    `evaluate` makes both anew from the ledger.

    Args:
        classifier: As in `evaluate`.
        purifier: As in `evaluate`.
        images: As in `evaluate`.
        labels: As in `evaluate`.
        plan: As in `evaluate`, without the threat `transfer`.
        run_dir: As in `evaluate`.
        device: Where it would compute.
    """
    try:
        before = Manifest.read(Path(run_dir))
        content: dict[str, Any] = json.loads((Path(run_dir) / "results.json").read_text())
        complete = bool(content["plan"]) and all(row["complete"] for row in content["rows"])
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        return None
    if not complete or not (Path(run_dir) / PICTURES[-1]).exists():
        return None
    now = _rebound(before, classifier, purifier, images, labels, plan, torch.device(device).type)
    return content if content["plan"] == now.hash else None


def is_about(
    classifier: nn.Module,
    purifier: nn.Module | None,
    images: Tensor,
    labels: Tensor,
    plan: Plan,
    run_dir: str | Path,
) -> bool:
    """Whether the folder holds an evaluation of these very networks and images, by whatever packages and device.

    Args:
        classifier: As in `evaluate`.
        purifier: As in `evaluate`.
        images: As in `evaluate`.
        labels: As in `evaluate`.
        plan: As in `evaluate`, without the threat `transfer`.
        run_dir: As in `evaluate`.
    """
    try:
        before = Manifest.read(Path(run_dir))
    except (FileNotFoundError, PlanChangedError):
        return False
    now = _rebound(before, classifier, purifier, images, labels, plan, before.values["device"])
    return all(before.values[name] == now.values[name] for name in SYSTEM)


def _rebound(
    before: Manifest,
    classifier: nn.Module,
    purifier: nn.Module | None,
    images: Tensor,
    labels: Tensor,
    plan: Plan,
    device: str,
) -> Manifest:
    """The manifest of now, with what only forward passes tell from the one before."""
    images, labels = checked_data(images, labels, plan.n)
    stochastic = tuple(name for name in ("classifier", "whole") if before.values[f"{name}_draws"] > 1)
    classes = before.values["num_classes"]
    return Manifest.bind(plan, classifier, purifier, images, labels, classes, device, None, stochastic)
