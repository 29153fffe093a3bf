"""A weakness planted into a model, which a sound attack must find.

After Zimmermann et al. 2022, "Increasing confidence in adversarial robustness evaluations": the classifier's head is
replaced by one that has an adversarial image in the ball by construction.
"""

import torch
from torch import Tensor, nn

from maep_lightning.attacks.autoattack import AutoAttackSettings, run_component
from maep_lightning.attacks.simple import random_corner
from maep_lightning.attacks.target import Target
from maep_lightning.evaluation.judging import confine, judge
from maep_lightning.evaluation.sanity.findings import Case, Finding

SAMPLES, CORNERS, STEPS = 8, 64, 25
LEVEL = 0.9
"""Where between the clean image and the best random corner the planted class begins."""


class _Planted(nn.Module):
    """Two logits: 0, and how far the logits of the model went along a direction beyond the planted level."""

    direction: Tensor
    origin: Tensor

    def __init__(self, stages: tuple[nn.Module, ...], direction: Tensor, origin: Tensor, reach: Tensor) -> None:
        super().__init__()
        self.chain = nn.ModuleList(stages)
        self.register_buffer("direction", direction / reach)
        self.register_buffer("origin", origin)
        self.train(False)

    def forward(self, images: Tensor) -> Tensor:
        hidden = images
        for stage in self.chain:
            hidden = stage(hidden)
        value = (hidden.float() - self.origin) @ self.direction - LEVEL
        return torch.stack([torch.zeros_like(value), value], dim=1)


def planted_weakness(case: Case) -> Finding:
    """S11: APGD finds the planted class, which the best of some random corners of the ball has reached."""
    generator = torch.Generator().manual_seed(case.plan.seed)
    eps, norm, found, planted = float(case.plan.eps), case.plan.norm, 0, 0
    settings = AutoAttackSettings(eps=case.plan.eps, norm=norm, apgd_steps=STEPS)
    for image in case.images[:SAMPLES, None]:
        corners = random_corner(image.expand(CORNERS, -1, -1, -1), eps, norm, generator)
        with case.whole.guarded(), torch.no_grad():
            origin, logits = case.whole(image)[0], case.whole(corners)
        direction = torch.randn(len(origin), generator=generator).to(origin)
        moves = (logits - origin) @ direction
        if moves.max() < -moves.min():
            direction, moves = -direction, -moves
        reach = moves.max()
        if not bool(reach > 1e-6):
            continue
        planted += 1
        target = Target(_Planted(case.whole.stages, direction, origin, reach), device=case.whole.device)
        label = torch.zeros(1, dtype=torch.int64, device=image.device)
        with target.guarded():
            attacked, _ = run_component(target, image, label, "apgd-ce", settings, case.plan.seed)
        confined, inside = confine(attacked, image, norm, eps)
        verdict = judge(target, confined, label)
        found += int((inside & verdict.finite & (verdict.prediction == 1)).item())
    if planted == 0:
        return Finding("skip", "no corner of the ball moves the logits")
    share = found / planted
    numbers = {"planted": float(planted), "found": float(found)}
    text = f"{found} of {planted} planted adversarial images found"
    if share >= 0.95:
        return Finding("pass", text, numbers)
    severe = share < 0.8 and case.differentiated
    return Finding("fail" if severe else "warn", f"{text}: the attack misses what is known to exist", numbers)
