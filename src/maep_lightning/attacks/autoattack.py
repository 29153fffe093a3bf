"""AutoAttack's components, driven one at a time.

The attack code is pyautoattack's own, unmodified. Its orchestrator is replaced: its resume does not work, it seeds by
batch, and it takes NaN gradients for robustness (see `maep_lightning.evaluation`).
Reference: Croce and Hein, "Reliable evaluation of adversarial robustness with an ensemble of diverse parameter-free
attacks", ICML 2020.
"""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from maep_lightning.attacks.target import Target, isolated_rng
from maep_lightning.attacks.threat import Epsilon, Norm, check_radius
from maep_lightning.functional.pixels import unit_range

Component = Literal["apgd-ce", "apgd-dlr", "apgd-t", "fab-t", "square"]
Version = Literal["standard", "rand"]

LEAST_CLASSES = {"apgd-dlr": 3, "apgd-t": 4}
"""Classes without which a component has no loss; the others need two."""

PUBLISHED_STEPS = 100
PUBLISHED_QUERIES = 5000
PUBLISHED_EOT = 20


@dataclass(frozen=True)
class AutoAttackSettings:
    """A version of AutoAttack and, for smoke tests, smaller budgets.

    Args:
        eps: Radius on the [0, 1] pixel scale.
        norm: `Linf`, `L2` or `L1`.
        version: `standard` (for deterministic models) or `rand` (for stochastic ones; expectation over 20 draws).
        apgd_steps: Iterations of APGD; 100 as published.
        fab_steps: Iterations of FAB; 100 as published.
        square_queries: Queries of Square; 5000 as published.
        targets: At most so many target classes; None as published (9; APGD-T in L1 5).
        eot_draws: Draws of version `rand` over which a gradient is averaged; 20 as published.

    Raises:
        ValueError: If a value is out of range.
    """

    eps: Epsilon
    norm: Norm = "Linf"
    version: Version = "standard"
    apgd_steps: int = PUBLISHED_STEPS
    fab_steps: int = PUBLISHED_STEPS
    square_queries: int = PUBLISHED_QUERIES
    targets: int | None = None
    eot_draws: int = PUBLISHED_EOT

    def __post_init__(self) -> None:
        object.__setattr__(self, "eps", Epsilon(self.eps))
        check_radius(self.eps, self.norm)
        if self.version not in get_args(Version):
            raise ValueError(f"version must be one of {', '.join(get_args(Version))}, not {self.version!r}.")
        for name in ("apgd_steps", "fab_steps", "square_queries", "targets", "eot_draws"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} must be at least 1, not {value}.")

    def components(self, num_classes: int) -> tuple[Component, ...]:
        """The components in their order; those whose loss needs more classes than there are give way.

        The targeted DLR loss needs 4 logits, the DLR loss 3.
        """
        if self.version == "rand":
            return ("apgd-ce", "apgd-dlr") if num_classes >= LEAST_CLASSES["apgd-dlr"] else ("apgd-ce",)
        if num_classes >= LEAST_CLASSES["apgd-t"]:
            return ("apgd-ce", "apgd-t", "fab-t", "square")
        return ("apgd-ce", "apgd-dlr", "fab-t", "square") if num_classes == 3 else ("apgd-ce", "fab-t", "square")

    def target_classes(self, component: Component, num_classes: int) -> int:
        """How many wrong classes a targeted component aims at."""
        published = 5 if component == "apgd-t" and self.norm == "L1" else 9
        return min(self.targets or published, published, num_classes - 1)

    @property
    def reduced(self) -> bool:
        """Whether a budget is below the published one, so that the result is not AutoAttack's."""
        small = self.apgd_steps < PUBLISHED_STEPS or self.targets is not None
        if self.version == "rand":
            return small or self.eot_draws < PUBLISHED_EOT
        return small or self.fab_steps < PUBLISHED_STEPS or self.square_queries < PUBLISHED_QUERIES

    def title(self, num_classes: int) -> str:
        """The name that reports print; a reduced run never carries AutoAttack's name alone."""
        if not self.reduced:
            classes = f", adapted to {num_classes} classes" if num_classes < 10 and self.version == "standard" else ""
            return f"AutoAttack {self.version}{classes}"
        names = "+".join(self.components(num_classes))
        budget = [f"APGD {self.apgd_steps} steps"]
        if self.version == "standard":
            budget += [f"FAB {self.fab_steps} steps", f"Square {self.square_queries} queries"]
        else:
            budget += [f"{self.eot_draws} draws"]
        if self.targets is not None:
            budget.append(f"{self.target_classes('apgd-t', num_classes)} targets")
        return f"reduced {names} ({', '.join(budget)})"

    def check_image_size(self, height: int, width: int) -> None:
        """Refuse sizes at which pyautoattack's Square crashes: in L2 and L1 it tiles the image with 5 x 5 squares.

        Args:
            height: Of an image, in pixels.
            width: Of an image, in pixels.

        Raises:
            ValueError: If so.
        """
        if self.norm == "Linf":
            return
        side, tile = height, height // 5
        if height != width or tile == 0 or (side - 5 * tile) // 2 + side // tile * tile > side:
            raise ValueError(
                f"AutoAttack's Square cannot work on {height} x {width} images in {self.norm}: it needs square images"
                " of 25 pixels or more. Use Linf, or resize."
            )

    def passes(self, component: Component, num_classes: int) -> tuple[int, int]:
        """Forward and backward passes that one image costs which the component cannot break."""
        targets = self.target_classes(component, num_classes)
        # The standard version shrinks L1 balls in three stages, each of which looks at its start.
        staged = self.norm == "L1" and self.version == "standard"
        steps = self.apgd_steps + (3 if staged else 1)
        if component in ("apgd-ce", "apgd-dlr"):
            runs = (5 if staged else 1) * (self.eot_draws if self.version == "rand" else 1) * steps
            return runs, runs
        if component == "apgd-t":
            return targets * (steps + 1), targets * steps
        if component == "fab-t":
            return targets * (2 * self.fab_steps + 3), targets * self.fab_steps
        return self.square_queries + 2, 0


def run_component(
    target: Target, images: Tensor, labels: Tensor, component: Component, settings: AutoAttackSettings, seed: int
) -> tuple[Tensor, list[str]]:
    """Run one component on one batch, as pyautoattack's own loop would.

    The result depends on the batch: a sample's random start is drawn by its row.

    Args:
        target: What is attacked; enter `target.guarded()` first.
        images: `(B, C, H, W)` in [0, 1], on the target's device.
        labels: `(B,)`.
        component: Which one.
        settings: Norm, radius and budgets.
        seed: Of this batch and component.

    Returns:
        `(B, C, H, W)`: an adversarial image where the component believes to have found one, else the image itself; and
        pyautoattack's warnings.

    Raises:
        ValueError: If the images are not in [0, 1], or the labels are not classes of the target.
    """
    with isolated_rng(seed, images.device), torch.no_grad(), _captured_warnings() as warnings:
        check_inputs(images, labels, num_classes := target.num_classes(images))
        if component == "square":
            settings.check_image_size(*images.shape[-2:])
        attack = _build(target, component, settings, num_classes, seed)
        adversarial = attack.perturb(images.contiguous().clone(), labels.clone())
    return adversarial.detach(), warnings


def run_expectation(
    target: Target, images: Tensor, labels: Tensor, component: Component, settings: AutoAttackSettings, seed: int
) -> tuple[list[Tensor], list[str]]:
    """Run one component of version `rand` on one batch, and hand over all that it came across.

    `perturb` of pyautoattack decides by single draws which samples are attacked, which are broken, and which image is
    the answer: https://github.com/fra31/auto-attack/pull/105. This runs the same iterations for every sample and leaves
    the decision to whoever estimates the candidates with fresh draws.

    Args:
        target: What is attacked; enter `target.guarded()` first.
        images: `(B, C, H, W)` in [0, 1], on the target's device.
        labels: `(B,)`.
        component: `apgd-ce` or `apgd-dlr`.
        settings: Norm, radius and budgets; its version is `rand`.
        seed: Of this batch and component.

    Returns:
        Candidates `(B, C, H, W)` each: the image of the highest loss, and the last one that a draw misclassified; and
        pyautoattack's warnings.

    Raises:
        ValueError: If the images are not in [0, 1], or the labels are not classes of the target.
    """
    with isolated_rng(seed, images.device), torch.no_grad(), _captured_warnings() as warnings:
        check_inputs(images, labels, num_classes := target.num_classes(images))
        attack = _build(target, component, settings, num_classes, seed)
        attack.init_hyperparam(images)
        highest, _, _, misclassified = attack.attack_single_run(images.contiguous().clone(), labels.clone())
    return [highest.detach(), misclassified.detach()], warnings


def check_inputs(images: Tensor, labels: Tensor, num_classes: int) -> None:
    """Refuse images outside [0, 1] and labels outside the classes; pyautoattack would clamp and count on.

    Args:
        images: `(B, C, H, W)`, uint8 or floating point.
        labels: `(B,)`.
        num_classes: K.

    Raises:
        ValueError: If so, with what to do.
    """
    low, high = unit_range(torch.stack([images.min(), images.max()])).float().tolist()
    if not (low >= 0 and high <= 1):
        raise ValueError(
            f"Images must be in [0, 1], but run from {low:.3g} to {high:.3g}. Attacks work on pixels:"
            " put the normalisation into the classifier as its first layer."
        )
    if int(labels.min()) < 0 or int(labels.max()) >= num_classes:
        raise ValueError(
            f"Labels run from {int(labels.min())} to {int(labels.max())}, but the classifier has {num_classes} classes."
        )


def _build(target: Target, component: Component, settings: AutoAttackSettings, num_classes: int, seed: int) -> Any:
    from pyautoattack import AutoAttack

    suite = AutoAttack(
        target,
        norm=settings.norm,
        eps=float(settings.eps),
        seed=seed,
        version=settings.version,
        device=target.device,
    )
    for apgd in (suite.apgd, suite.apgd_targeted):
        _set_apgd_steps(apgd, settings.apgd_steps)
    suite.apgd_targeted.n_target_classes = settings.target_classes("apgd-t", num_classes)
    suite.fab.n_target_classes = settings.target_classes("fab-t", num_classes)
    suite.fab.n_iter = settings.fab_steps
    suite.fab.targeted = True
    suite.square.n_queries = settings.square_queries
    if settings.version == "rand":
        suite.apgd.eot_iter = settings.eot_draws
    suite.apgd.loss = "dlr" if component == "apgd-dlr" else "ce"
    return {"apgd-t": suite.apgd_targeted, "fab-t": suite.fab, "square": suite.square}.get(component, suite.apgd)


def _set_apgd_steps(apgd: Any, steps: int) -> None:
    """Set the iterations and the checkpoints that APGD's constructor derives from them."""
    apgd.n_iter = apgd.n_iter_orig = steps
    apgd.n_iter_2 = max(int(0.22 * steps), 1)
    apgd.n_iter_min = max(int(0.06 * steps), 1)
    apgd.size_decr = max(int(0.03 * steps), 1)


class _Collector(logging.Handler):
    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.messages: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        message = record.getMessage().replace(" See flags_doc.md for details.", "")
        if message not in self.messages:
            self.messages.append(message)


@contextmanager
def _captured_warnings() -> Iterator[list[str]]:
    """Collect what pyautoattack logs as warnings, each once."""
    logger, collector = logging.getLogger("auto-attack"), _Collector()
    propagate, logger.propagate = logger.propagate, False
    logger.addHandler(collector)
    try:
        yield collector.messages
    finally:
        logger.removeHandler(collector)
        logger.propagate = propagate
