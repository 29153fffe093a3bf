"""What an evaluation costs at most, from the passes that are left and the measured time of one."""

import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from maep_lightning.attacks.autoattack import AutoAttackSettings
from maep_lightning.attacks.target import Target
from maep_lightning.attacks.threat import Norm
from maep_lightning.evaluation.binding import bind, chunk_fingerprints
from maep_lightning.evaluation.cache import AttackCache
from maep_lightning.evaluation.inputs import pixels
from maep_lightning.evaluation.ledger import Ledger, Status, Unit
from maep_lightning.evaluation.plan import Plan
from maep_lightning.evaluation.progress import Timings
from maep_lightning.evaluation.rungs import UNDEFENDED, Rung
from maep_lightning.evaluation.sanity import plant, slopes
from maep_lightning.evaluation.sanity.probes import STEPS

BACKWARD = 2
"""A backward pass costs about as much as so many forward ones."""
TIMED = 4
"""Images whose forward pass is timed for an estimate."""


@dataclass(frozen=True)
class Preview:
    """Seconds at most, if no image breaks; broken ones cost far less.

    Attributes:
        attacks: Of all attacks that are neither in the ledger nor in the cache, in process-seconds.
        sanity: Of the sanity battery, which one process runs.
        milliseconds: Of one image through the whole, forward.
    """

    attacks: float
    sanity: float
    milliseconds: float


def clean_seconds(rungs: list[Rung], timings: Timings) -> dict[str, float] | None:
    """Seconds of an image through the judge of each clean rung; None as long as the whole has seen none.

    Args:
        rungs: The rungs.
        timings: Times of what was done.
    """
    seconds: dict[str, float] = {}
    for entry in timings.read():
        if entry["attack"] == "clean" and entry["forwards"]:
            seconds[entry["rung"]] = entry["seconds"] / entry["forwards"]
    return seconds if [rung.name for rung in rungs if rung.baseline is None][-1] in seconds else None


def price(
    rungs: list[Rung],
    plan: Plan,
    data: list[str],
    n: int,
    samples: int,
    seconds: dict[str, float],
    ledger: Ledger,
    cache: AttackCache | None,
    planned: set[Path] | None = None,
) -> Preview:
    """Price what is left to do by the time of a forward pass.

    Args:
        rungs: The rungs.
        plan: The plan.
        data: Fingerprint of each chunk's images and labels.
        n: Samples.
        samples: Images of the sanity battery.
        seconds: Of an image through the judge of each clean rung, the whole's at least.
        ledger: The ledger.
        cache: The cache, if there is one.
        planned: Files of the cache that will be there by then; those that these rungs leave are added.
    """
    planned = set() if planned is None else planned
    clean = {id(rung.judge): rung.name for rung in rungs if rung.baseline is None}
    whole = seconds[list(clean.values())[-1]]

    def of_pass(target: Target, rung: Rung) -> float:
        # A surrogate is taken for as dear as the classifier, a target that stands in for another as dear as that. The
        # classifier has no time of its own where its clean accuracy comes from the cache.
        stand_in = UNDEFENDED if rung.origin is not None else rung.baseline or rung.name
        return seconds.get(clean.get(id(target), stand_in), whole)

    total = 0.0
    for rung in rungs:
        attacking, judging = of_pass(rung.watched, rung), of_pass(rung.judge, rung)
        kept = rung.origin_hash if rung.origin is not None else rung.context_hash
        for number, fingerprint in enumerate(data):
            size = min(plan.chunk_size, n - number * plan.chunk_size)
            for attack in rung.attacks:
                file = None if cache is None else cache.path(kept, attack, number, fingerprint)
                cached = file is not None and (file in planned or file.exists())
                if file is not None and (rung.cached or rung.origin is not None):
                    planned.add(file)
                unit = ledger.read(rung.name, attack, number)
                if unit is None and rung.cached and cache is not None:
                    unit = cache.read(Unit, rung.name, rung.context_hash, attack, number, fingerprint)
                if unit is not None and rung.judge.draws == 1:
                    size = int(((unit.status == Status.ROBUST) | (unit.status == Status.ERROR)).sum())
                if unit is not None or (cached and rung.cached) or size == 0:
                    continue
                forwards, backwards = (0, 0) if cached else rung.cost[attack]
                total += size * ((forwards + BACKWARD * backwards) * attacking + rung.judge.draws * judging)
    forwards, backwards = effort(plan, samples, rungs[-1].judge.draws > 1) if samples else (0, 0)
    return Preview(total, (forwards + BACKWARD * backwards) * whole, 1000 * whole)


def estimate(
    classifier: nn.Module,
    purifier: nn.Module | None,
    images: Tensor,
    labels: Tensor,
    plan: Plan,
    run_dir: str | Path,
    *,
    cache_dir: str | Path | None = None,
    device: torch.device | str | None = None,
    surrogate: nn.Module | None = None,
    planned: set[Path] | None = None,
) -> Preview:
    """What `evaluate` with the same arguments would cost at most, from the measured time of a few forward passes.

    It finds what would stop that too, and writes nothing.

    Args:
        classifier: As in `evaluate`.
        purifier: As in `evaluate`.
        images: As in `evaluate`.
        labels: As in `evaluate`.
        plan: As in `evaluate`.
        run_dir: As in `evaluate`; what is on file there costs nothing.
        cache_dir: As in `evaluate`.
        device: As in `evaluate`.
        surrogate: As in `evaluate`.
        planned: Files of the cache that earlier evaluations of a study will leave; those of this one are added.

    Raises:
        ValueError: As `evaluate`.
        PlanChangedError: As `evaluate`.
    """
    bound = bind(classifier, purifier, images, labels, plan, Path(run_dir), device, surrogate)
    with suppress(FileNotFoundError):
        bound.manifest.check(Path(run_dir))
    sample = pixels(bound.images[:TIMED], bound.device)
    seconds = {}
    for rung in bound.rungs:
        if rung.baseline is None:
            with rung.judge.guarded(), torch.no_grad():
                started = time.monotonic()
                rung.judge(sample).sum().item()  # waits for the device
                seconds[rung.name] = (time.monotonic() - started) / len(sample)
    data = chunk_fingerprints(bound.images, bound.labels, plan.chunk_size)
    cache = AttackCache(Path(cache_dir)) if cache_dir is not None else None
    return price(bound.rungs, plan, data, len(bound.labels), 0, seconds, bound.ledger, cache, planned)


def effort(plan: Plan, samples: int, random: bool = False) -> tuple[int, int]:
    """Forward and backward passes, counted in images, that the sanity battery makes where no attack succeeds.

    Args:
        plan: The plan.
        samples: Images of the battery.
        random: Whether the system is stochastic.
    """

    def apgd(steps: int, norm: Norm) -> int:
        return AutoAttackSettings(eps=plan.eps, norm=norm, apgd_steps=steps).passes("apgd-ce", 10)[0]

    planted, compared = min(samples, plant.SAMPLES), min(samples, slopes.COMPARED)
    short = apgd(min(STEPS, plan.apgd_steps), plan.norm)
    longer = apgd(2 * plan.apgd_steps, plan.norm) + 5 * apgd(plan.apgd_steps, plan.norm)
    # S1 four gradients, S3 two attacks, S4, S7 and S10 five between them, S6 the longer ones and one step; S11; S2.
    backwards = samples * (4 + 2 * apgd(STEPS, "Linf") + 5 * short + longer + 1)
    backwards += planted * apgd(plant.STEPS, plan.norm) + 2 * compared
    # The clean images before each attack and what it made after it, the probes without an attack; S11; S2.
    others = samples * (3 * 14 + 8) + planted * (plant.CORNERS + 6) + 2 * compared * (2 * (slopes.DIRECTIONS + 1) + 1)
    others += samples * plan.judge_draws if random else 0
    return backwards + others, backwards
