"""The rungs of the threat ladder: who attacks what, and who judges.

A rung is a name, the attacks in their order, a function that makes candidates for a batch, and the judge that decides.
`maep_lightning.evaluation.ladder` puts those of a plan together.
"""

import hashlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, cast

import torch
from torch import Tensor

from maep_lightning.attacks.autoattack import AutoAttackSettings, Component, run_component
from maep_lightning.attacks.simple import NOISE_DRAWS, RECIPES, random_corner, simple_attack
from maep_lightning.attacks.target import Target, isolated_rng
from maep_lightning.evaluation.fingerprint import of_json
from maep_lightning.evaluation.ledger import Ledger, Status

UNDEFENDED = "undefended-none"
UNDEFENDED_ATTACKED = "undefended-whitebox"
CLEAN = "none"

STRONGEST_FIRST = ("whitebox", "eot", "fixed_coins", "bpda", "square", "blind_worst", "blind", "transfer", "noise")
"""Threat models by what their attackers have to attack with."""


@dataclass(frozen=True)
class Batch:
    """Samples of one chunk that an attack works on.

    Attributes:
        chunk: Number of the chunk.
        indices: `(k,)` int64 on the CPU, global numbers.
        images: `(k, C, H, W)` float32 in [0, 1] on the device.
        labels: `(k,)` on the device.
        seed: Of this chunk, rung and attack.
    """

    chunk: int
    indices: Tensor
    images: Tensor
    labels: Tensor
    seed: int

    def __len__(self) -> int:
        """Number of samples."""
        return len(self.labels)

    def part(self, rows: slice | Tensor) -> "Batch":
        """Some of the samples."""
        where = rows.to(self.labels.device) if isinstance(rows, Tensor) else rows
        return Batch(self.chunk, self.indices[rows], self.images[where], self.labels[where], self.seed)


@dataclass(frozen=True)
class Candidates:
    """What an attack came up with.

    Attributes:
        images: `(k, C, H, W)`; the clean image where nothing was found.
        unreliable: `(k,)` bool, samples whose attack did not work, so that surviving it says nothing; None for none.
        warnings: Of the attack.
    """

    images: Tensor
    unreliable: Tensor | None = None
    warnings: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Rung:
    """One threat model.

    Attributes:
        name: Folder in the ledger and, for rungs of the ladder, the threat in the results.
        attacks: Names of its attacks; each works on the samples that survived those before.
        generate: Makes candidates of a batch for an attack.
        judge: Decides what is broken.
        context: What the result depends on besides the chunk's data, as JSON types.
        watched: The target whose gradients the attacks use.
        baseline: The clean rung of the judge; None for a clean rung.
        start: `correct`: only samples that are right when clean are attacked, the others count as wrong already (as
            AutoAttack does). `all`: the accuracy on the attacked images as they come (as blind results are reported).
        source: The rung whose adversarial images it replays, if any.
        cached: Whether its units may come from and go to the cache.
        origin: What its candidates depend on besides the chunk's data, as JSON types, where the judge has no part in
            them: they are made for whole chunks, whoever survived, and may come from and go to the cache. Else None.
        cost: Forward and backward passes through `watched` for an image that survives, for each attack.
        title: How results name its attacks; empty for AutoAttack's own title.

    Raises:
        ValueError: If two of its attacks have the same name, by which the ledger tells them apart.
    """

    name: str
    attacks: tuple[str, ...]
    generate: Callable[[Batch, str], Candidates]
    judge: Target
    context: dict[str, Any]
    watched: Target
    baseline: str | None = None
    start: Literal["correct", "all"] = "correct"
    source: str | None = None
    cached: bool = False
    origin: dict[str, Any] | None = None
    cost: dict[str, tuple[int, int]] = field(default_factory=dict)
    title: str = ""

    def __post_init__(self) -> None:
        if len(set(self.attacks)) < len(self.attacks):
            raise ValueError(f"{self.name}: attacks must have different names, not {', '.join(self.attacks)}.")

    @property
    def context_hash(self) -> str:
        """Fingerprint of the context."""
        return of_json(self.context)

    @property
    def origin_hash(self) -> str:
        """Fingerprint of the origin."""
        return of_json(self.origin)


def of_kinds(names: Iterable[str], kinds: Sequence[str] = STRONGEST_FIRST) -> list[str]:
    """Those of some rungs that are of given threat models, in the order of these, with named attacks behind.

    Args:
        names: Names of rungs, such as `blind` and `blind:fgsm`.
        kinds: Threat models.
    """
    known = [name for name in names if name.partition(":")[0] in kinds]
    return sorted(known, key=lambda name: (kinds.index(name.partition(":")[0]), ":" in name))


def derived_seed(seed: int, *purpose: object) -> int:
    """A seed for a purpose of its own, the same in whatever process; 32 bits, since more do not reach a generator."""
    digest = hashlib.sha256(" ".join(map(str, (seed, *purpose))).encode()).digest()
    return int.from_bytes(digest[:4], "big")


def unit_seed(seed: int, rung: str, attack: str, chunk: int) -> int:
    """Seed of one attack on one chunk."""
    return derived_seed(seed, rung, attack, chunk)


def judge_seed(seed: int) -> int:
    """Seed of the draws that judge what an attack of this seed has made: fresh ones, which it has not seen."""
    return derived_seed(seed, "judge")


def clean_rung(name: str, judge: Target, context: dict[str, Any], cached: bool = False) -> Rung:
    """Judge the images as they are."""

    def generate(batch: Batch, attack: str) -> Candidates:
        return Candidates(batch.images)

    return Rung(name, ("clean",), generate, judge, context, judge, start="all", cached=cached, cost={"clean": (0, 0)})


def autoattack_rung(
    name: str,
    target: Target,
    settings: AutoAttackSettings,
    num_classes: int,
    context: dict[str, Any],
    baseline: str,
    cached: bool = False,
    start: Literal["correct", "all"] = "correct",
    title: str = "",
) -> Rung:
    """AutoAttack's components with exact gradients through the target, judged by the target."""
    components = settings.components(num_classes)
    rung = attacks_rung(name, target, target, components, settings, num_classes, context, title, start=start)
    return replace(rung, baseline=baseline, cached=cached)


def replay_rung(name: str, source: Rung, ledger: Ledger, judge: Target, context: dict[str, Any], baseline: str) -> Rung:
    """Show a judge the adversarial images that another rung has on file, and clean ones where it found none."""

    def generate(batch: Batch, attack: str) -> Candidates:
        images = batch.images.clone()
        unreliable = torch.zeros(len(batch), dtype=torch.bool)
        rows = {int(index): row for row, index in enumerate(batch.indices)}
        for rung, name in [(source.baseline or "", "clean"), *((source.name, name) for name in source.attacks)]:
            unit = ledger.read(rung, name, batch.chunk)
            if unit is None:
                continue
            if broken := list(unit.breaking()):
                places = [rows[index] for index, _ in broken]
                images[places] = torch.stack([image for _, image in broken]).to(images.device)
                unreliable[places] = False
            for index in unit.indices[unit.status == Status.ERROR].tolist():
                unreliable[rows[index]] = True
        return Candidates(images, unreliable.to(images.device))

    cost = {"replay": (0, 0)}
    return Rung(
        name, ("replay",), generate, judge, context, judge, baseline, start="all", source=source.name, cost=cost
    )


def attacks_rung(
    name: str,
    attacked: Target,
    judge: Target,
    attacks: tuple[str, ...],
    settings: AutoAttackSettings,
    num_classes: int,
    context: dict[str, Any],
    title: str,
    origin: dict[str, Any] | None = None,
    start: Literal["correct", "all"] = "correct",
) -> Rung:
    """Simple attacks and AutoAttack's components on one target, per sample the worst that a judge finds.

    Args:
        name: As in `Rung`.
        attacked: What is attacked.
        judge: Who decides; `attacked` itself, or another.
        attacks: Keys of `RECIPES` and components.
        settings: Norm, radius and budgets.
        num_classes: K.
        context: As in `Rung`.
        title: As in `Rung`.
        origin: As in `Rung`.
        start: As in `Rung`.
    """

    def generate(batch: Batch, attack: str) -> Candidates:
        with attacked.guarded():
            if attack in RECIPES:
                with isolated_rng(batch.seed, batch.images.device):
                    radius, norm = float(settings.eps), settings.norm
                    return Candidates(simple_attack(attacked, batch.images, batch.labels, attack, radius, norm))
            component = cast(Component, attack)
            images, warnings = run_component(attacked, batch.images, batch.labels, component, settings, batch.seed)
        return Candidates(images, warnings=warnings)

    cost = {
        attack: (RECIPES[attack].steps,) * 2
        if attack in RECIPES
        else settings.passes(cast(Component, attack), num_classes)
        for attack in attacks
    }
    return Rung(name, attacks, generate, judge, context, attacked, CLEAN, start, origin=origin, cost=cost, title=title)


def noise_rung(name: str, judge: Target, settings: AutoAttackSettings, context: dict[str, Any]) -> Rung:
    """Random corners of the ball until one breaks the judge."""

    def generate(batch: Batch, attack: str) -> Candidates:
        generator = torch.Generator().manual_seed(batch.seed)
        found = batch.images.clone()
        open_ = torch.ones(len(batch), dtype=torch.bool, device=batch.images.device)
        with judge.guarded(), torch.no_grad():
            for _ in range(NOISE_DRAWS):
                noisy = random_corner(batch.images, float(settings.eps), settings.norm, generator)
                rows = open_.nonzero().squeeze(1)
                hit = rows[judge(noisy[rows]).argmax(dim=1) != batch.labels[rows]]
                found[hit] = noisy[hit]
                open_[hit] = False
                if not bool(open_.any()):
                    break
        return Candidates(found)

    cost = {"corners": (NOISE_DRAWS, 0)}
    title = f"any of {NOISE_DRAWS} random corners of the ball"
    return Rung(name, ("corners",), generate, judge, context, judge, CLEAN, cost=cost, title=title)
