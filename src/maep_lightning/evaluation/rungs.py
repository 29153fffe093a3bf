"""The rungs of the threat ladder: who attacks what, and who judges.

A rung is a name, the attacks in their order, a function that makes candidates for a batch, and the judge that decides.
Adding a rung needs no change elsewhere.
"""

import hashlib
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, cast

import torch
from torch import Tensor

from maep_lightning.attacks.autoattack import AutoAttackSettings, Component, run_component
from maep_lightning.attacks.bpda import StraightThrough
from maep_lightning.attacks.simple import NOISE_DRAWS, SIMPLE, random_corner, simple_attack
from maep_lightning.attacks.target import Target, isolated_rng
from maep_lightning.evaluation.fingerprint import PACKAGES, of_json
from maep_lightning.evaluation.ledger import Ledger, Status
from maep_lightning.evaluation.plan import Manifest, Plan

UNDEFENDED = "undefended-none"
UNDEFENDED_ATTACKED = "undefended-whitebox"
CLEAN = "none"


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

    @property
    def context_hash(self) -> str:
        """Fingerprint of the context."""
        return of_json(self.context)

    @property
    def origin_hash(self) -> str:
        """Fingerprint of the origin."""
        return of_json(self.origin)


def unit_seed(seed: int, rung: str, attack: str, chunk: int) -> int:
    """Seed of one attack on one chunk, the same in whatever process."""
    digest = hashlib.sha256(f"{seed} {rung} {attack} {chunk}".encode()).digest()
    return int.from_bytes(digest[:4], "big")


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
) -> Rung:
    """AutoAttack's components with exact gradients through the target, judged by the target."""

    def generate(batch: Batch, attack: str) -> Candidates:
        component = cast(Component, attack)
        with target.guarded():
            images, warnings = run_component(target, batch.images, batch.labels, component, settings, batch.seed)
        return Candidates(images, warnings=warnings)

    components = settings.components(num_classes)
    cost: dict[str, tuple[int, int]] = {name: settings.passes(name, num_classes) for name in components}
    return Rung(name, components, generate, target, context, target, baseline, cached=cached, cost=cost)


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
            broken = unit.indices[unit.status == Status.BROKEN]
            for index, image in zip(broken.tolist(), unit.adversarial, strict=True):
                images[rows[index]] = image.to(images.device)
                unreliable[rows[index]] = False
            for index in unit.indices[unit.status == Status.ERROR].tolist():
                unreliable[rows[index]] = True
        return Candidates(images, unreliable.to(images.device))

    cost = {"replay": (0, 0)}
    return Rung(
        name, ("replay",), generate, judge, context, judge, baseline, start="all", source=source.name, cost=cost
    )


def component_rung(
    name: str,
    attacked: Target,
    judge: Target,
    components: tuple[Component, ...],
    settings: AutoAttackSettings,
    num_classes: int,
    context: dict[str, Any],
) -> Rung:
    """Some of AutoAttack's components against one target, judged by another that computes the same logits."""

    def generate(batch: Batch, attack: str) -> Candidates:
        component = cast(Component, attack)
        with attacked.guarded():
            images, warnings = run_component(attacked, batch.images, batch.labels, component, settings, batch.seed)
        return Candidates(images, warnings=warnings)

    cost: dict[str, tuple[int, int]] = {part: settings.passes(part, num_classes) for part in components}
    budgets = {"square": f"{settings.square_queries} queries"}
    parts = [f"{part} ({budgets.get(part, f'{settings.apgd_steps} steps')})" for part in components]
    title = f"{'BPDA-identity ' if name == 'bpda' else ''}{' + '.join(parts)}"
    return Rung(name, components, generate, judge, context, attacked, CLEAN, cost=cost, title=title)


def simple_rung(
    name: str,
    attacked: Target,
    judge: Target,
    settings: AutoAttackSettings,
    context: dict[str, Any],
    origin: dict[str, Any],
) -> Rung:
    """FGSM, BIM, MI-FGSM and PGD with five starts on one target, per sample the worst that another judges."""

    def generate(batch: Batch, attack: str) -> Candidates:
        with attacked.guarded(), isolated_rng(batch.seed, batch.images.device):
            found = simple_attack(attacked, batch.images, batch.labels, attack, float(settings.eps), settings.norm)
        return Candidates(found)

    cost = {attack: (recipe.steps, recipe.steps) for attack, recipe in SIMPLE.items()}
    title = (
        f"worst of FGSM, BIM, MI-FGSM, PGD-{SIMPLE['pgd'].steps} x 5{' on a surrogate' if name == 'transfer' else ''}"
    )
    return Rung(name, tuple(SIMPLE), generate, judge, context, attacked, CLEAN, origin=origin, cost=cost, title=title)


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


def ladder(
    plan: Plan,
    manifest: Manifest,
    classifier: Target,
    defended: Target | None,
    ledger: Ledger,
    surrogate: Target | None = None,
) -> list[Rung]:
    """The rungs of a plan, in the order in which a chunk climbs them.

    Args:
        plan: The plan.
        manifest: The plan bound to networks and data.
        classifier: The bare classifier.
        defended: The purifier before the classifier; None for no purifier.
        ledger: Where the blind rung finds the attacks on the classifier.
        surrogate: What the transfer rung attacks; needed for that one only.

    Raises:
        ValueError: If the transfer rung is asked for without a surrogate.
    """
    values, settings = manifest.values, plan.settings
    classes = int(values["num_classes"])
    common = ("schema", "seed", "device", "precision", *(f"version_{name}" for name in PACKAGES))
    attack = ("norm", "eps", "version", "apgd_steps", "fab_steps", "square_queries", "targets", "attacks")

    def of(*names: str) -> dict[str, Any]:
        """What a result depends on: all that concerns these networks."""
        networks = [f"{name}_{part}" for name in names for part in ("weights", "architecture")]
        return {name: values[name] for name in (*common, *networks)}

    def by(*names: str) -> dict[str, Any]:
        return {name: values[name] for name in names}

    bare = of("classifier")
    bare_attack = bare | by(*attack)
    rungs = [clean_rung(UNDEFENDED, classifier, bare, cached=True)]
    source = autoattack_rung(UNDEFENDED_ATTACKED, classifier, settings, classes, bare_attack, UNDEFENDED, cached=True)
    if "blind" in plan.threats or (defended is None and "whitebox" in plan.threats):
        rungs.append(source)
    if defended is None:
        return rungs
    whole = of("classifier", "purifier")
    whole_attack = whole | by(*attack)
    recipes = {"simple": {name: list(asdict(recipe).values()) for name, recipe in SIMPLE.items()}}
    simple = by("norm", "eps") | recipes
    rungs.append(clean_rung(CLEAN, defended, whole))
    if "noise" in plan.threats:
        rungs.append(noise_rung("noise", defended, settings, whole_attack | {"draws": NOISE_DRAWS}))
    if "transfer" in plan.threats:
        if surrogate is None:
            raise ValueError("The transfer threat needs a surrogate classifier: give its file, or leave it out.")
        origin = of("surrogate") | simple
        rungs.append(simple_rung("transfer", surrogate, defended, settings, whole | origin, origin))
    if "blind" in plan.threats:
        rungs.append(replay_rung("blind", source, ledger, defended, whole_attack, CLEAN))
    if "blind_worst" in plan.threats:
        origin = bare | simple
        rungs.append(simple_rung("blind_worst", classifier, defended, settings, whole | origin, origin))
    if "square" in plan.threats:
        rungs.append(component_rung("square", defended, defended, ("square",), settings, classes, whole_attack))
    if "bpda" in plan.threats:
        through = Target(*(StraightThrough(stage) for stage in defended.stages[:-1]), defended.stages[-1])
        gradient = tuple(part for part in settings.components(classes) if part.startswith("apgd"))
        rungs.append(component_rung("bpda", through, defended, gradient, settings, classes, whole_attack))
    if "whitebox" in plan.threats:
        rungs.append(autoattack_rung("whitebox", defended, settings, classes, whole_attack, CLEAN))
    return rungs
