"""Rungs against stochastic systems: gradients averaged over draws of its coins, and candidates judged by fresh ones.

After Athalye et al. 2018 (expectation over transformation), AutoAttack's version `rand`, and Lee and Kim 2023.
"""

from typing import Any, cast

import torch
from torch import Tensor

from maep_lightning.attacks.autoattack import PUBLISHED_EOT, AutoAttackSettings, Component, run_expectation
from maep_lightning.attacks.pgd import EOT_STEP, EOT_STEPS, pgd
from maep_lightning.attacks.target import Target, isolated_rng
from maep_lightning.evaluation.rungs import CLEAN, Batch, Candidates, Rung, derived_seed

PGD = "pgd"


def expectation_rung(
    name: str,
    attacked: Target,
    judge: Target,
    attacks: tuple[str, ...],
    steps: int,
    settings: AutoAttackSettings,
    context: dict[str, Any],
    title: str,
) -> Rung:
    """Components of AutoAttack's version `rand`, and PGD, each gradient averaged over draws.

    Of what a component came across, the image that the judge gets right least often in as many draws is its candidate.
    Neither these draws nor those of the attack are the ones that judge it.

    Args:
        name: Of the rung.
        attacked: What gradients go through.
        judge: What decides.
        attacks: Some of `apgd-ce`, `apgd-dlr` and `pgd`.
        steps: Of PGD.
        settings: Norm, radius and budgets; its version is `rand`.
        context: What the result depends on.
        title: How results name its attacks.
    """
    draws = settings.eot_draws

    def generate(batch: Batch, attack: str) -> Candidates:
        images, labels, eps = batch.images, batch.labels, float(settings.eps)
        with attacked.guarded():
            if attack == PGD:
                with isolated_rng(batch.seed, images.device):
                    found = pgd(attacked, images, labels, eps, EOT_STEP * eps, steps, settings.norm, False, draws=draws)
                return Candidates(found)
            candidates, warnings = run_expectation(
                attacked, images, labels, cast(Component, attack), settings, batch.seed
            )
        with judge.guarded(), torch.no_grad(), isolated_rng(derived_seed(batch.seed, "choice"), images.device):
            right = torch.stack([_right(judge, candidate, labels, draws) for candidate in candidates])
        chosen = torch.stack(candidates)[right.argmin(dim=0), torch.arange(len(batch), device=images.device)]
        return Candidates(chosen, warnings=warnings)

    cost = {PGD: (draws * steps, draws * steps)}
    for part in attacks:
        if part != PGD:
            forwards, backwards = settings.passes(cast(Component, part), 10)
            cost[part] = (forwards + 2 * draws, backwards)
    return Rung(name, attacks, generate, judge, context, attacked, CLEAN, cost=cost, title=title)


def eot_attacks(settings: AutoAttackSettings, num_classes: int) -> tuple[str, ...]:
    """The attacks of the rung `eot`; PGD is published for Linf and L2."""
    return (*settings.components(num_classes), *((PGD,) if settings.norm != "L1" else ()))


def eot_title(settings: AutoAttackSettings, steps: int, num_classes: int, judge: Target) -> str:
    """How results name the rung `eot`; a reduced one never carries a published name alone."""
    reduced = settings.eot_draws < PUBLISHED_EOT or steps < EOT_STEPS
    second = f"PGD-{steps} x EOT-{settings.eot_draws}"
    names = [settings.title(num_classes)]
    if PGD in eot_attacks(settings, num_classes):
        names.append(f"reduced {second}" if reduced else second)
    return f"{' + '.join(names)}, judged by the majority of {judge.draws} fresh draws"


def _right(judge: Target, images: Tensor, labels: Tensor, draws: int) -> Tensor:
    return torch.stack([judge(images).argmax(dim=1) == labels for _ in range(draws)]).sum(dim=0)
