"""From ledger files to integer counts."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from maep_lightning.evaluation.ledger import Ledger, Status, Unit
from maep_lightning.evaluation.rungs import Rung


@dataclass(frozen=True)
class Outcome:
    """What became of every sample on a rung.

    Attributes:
        name: Name of the rung.
        status: `(n,)` uint8, a `Status` each.
        warnings: Of the attacks, each once.
        errors: Texts of exceptions, each once.
        right: `(n,)` int32, of each sample the fewest right draws of the judge on any of its images; None where rungs
            with different judges are joined.
        draws: Of the judge for each image.
    """

    name: str
    status: Tensor
    warnings: tuple[str, ...] = ()
    errors: tuple[str, ...] = ()
    right: Tensor | None = None
    draws: int = 1

    def count(self, *statuses: Status) -> int:
        """Samples with one of these statuses."""
        return sum(int((self.status == status).sum()) for status in statuses)

    @property
    def n(self) -> int:
        """Samples."""
        return len(self.status)

    @property
    def complete(self) -> bool:
        """Whether every sample was attacked without an error."""
        return self.count(Status.ERROR, Status.NOT_RUN) == 0

    @property
    def accuracy(self) -> float | None:
        """Fraction of samples that are still right; None when incomplete, since only bounds are known then."""
        return self.count(Status.ROBUST) / self.n if self.complete else None

    @property
    def bounds(self) -> tuple[float, float]:
        """Accuracy if every sample with an error were wrong, and if it were right."""
        right = self.count(Status.ROBUST)
        return right / self.n, (right + self.count(Status.ERROR, Status.NOT_RUN)) / self.n

    @property
    def readings(self) -> dict[str, float] | None:
        """Three accuracies before a stochastic judge of m draws; None before a deterministic one, or when incomplete.

        `mean_draw` is what to expect of a single draw, `majority` what this project counts, and `any_of_m` the share of
        samples that all draws get right.
        """
        if self.draws == 1 or self.right is None or not self.complete:
            return None
        counts = {"mean_draw": self.right.double().mean() / self.draws}
        counts["majority"] = (self.status == Status.ROBUST).double().mean()
        counts["any_of_m"] = (self.right == self.draws).double().mean()
        return {"draws": self.draws} | {name: float(value) for name, value in counts.items()}

    @property
    def interval(self) -> tuple[float, float]:
        """Wilson 95 % interval; around the bounds when incomplete."""
        right = self.count(Status.ROBUST)
        open_ = self.count(Status.ERROR, Status.NOT_RUN)
        return wilson(right, self.n)[0], wilson(right + open_, self.n)[1]


_QUANTILE = 1.959963984540054
"""Of the normal distribution, for 95 %."""


def wilson(successes: int, n: int) -> tuple[float, float]:
    """Wilson score interval of a proportion (Wilson 1927), 95 %.

    Args:
        successes: Number of successes.
        n: Number of trials.

    Returns:
        Low and high end, fractions.

    Raises:
        ValueError: If there is no trial.
    """
    if n < 1:
        raise ValueError("An interval needs at least one sample.")
    share, z = successes / n, _QUANTILE
    centre = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    return (0.0 if successes == 0 else centre - half), (1.0 if successes == n else centre + half)


@dataclass(frozen=True)
class Standing:
    """Where the samples of one chunk stand after some attacks.

    Attributes:
        status: `(b,)` uint8, a `Status` each.
        right: `(b,)` int32, the fewest right draws of the judge on any image so far.
    """

    status: Tensor
    right: Tensor


def standing(rung: Rung, clean: Unit | None, units: list[Unit | None], indices: Tensor) -> Standing:
    """Where the samples of one chunk stand.

    Wrong under any attack is wrong; else an error in any leaves the sample unknown; else a missing attack does.

    Args:
        rung: The rung.
        clean: The chunk's clean images before the same judge; None for a clean rung, or where they were not judged.
        units: Of the attacks so far; None for one that has not run.
        indices: `(b,)` global numbers of the chunk's samples, ascending and without gaps.
    """
    status = torch.full((len(indices),), int(Status.ROBUST), dtype=torch.uint8)
    right = torch.full((len(indices),), rung.judge.draws, dtype=torch.int32)
    if rung.start == "correct" and rung.baseline is not None:
        if clean is None:
            status[:] = int(Status.NOT_RUN)
        else:
            status, right = clean.status.clone(), clean.right.clone()
    for unit in units:
        open_ = (status == Status.ROBUST) | (status == Status.ERROR)
        if unit is None:
            status[status == Status.ROBUST] = int(Status.NOT_RUN)
            continue
        now, rows = torch.full_like(status, int(Status.ROBUST)), unit.indices - indices[0]
        now[rows] = unit.status
        decided = (now == Status.BROKEN) | (now == Status.CLEAN_WRONG)
        status = torch.where(open_ & (decided | (now == Status.ERROR)), now, status)
        judged = unit.status != Status.ERROR
        right[rows[judged]] = torch.minimum(right[rows[judged]], unit.right[judged])
    return Standing(status, right)


def alive(rung: Rung, clean: Unit | None, now: Standing) -> Tensor:
    """Which samples of a chunk the next attack works on: `(b,)` bool.

    Of a stochastic judge those that any draw still gets right, whatever the majority says: the mean over draws can
    fall further.
    """
    if rung.judge.draws > 1:
        return (now.right > 0) | (now.status == Status.ERROR)
    open_ = (now.status == Status.ROBUST) | (now.status == Status.ERROR)
    if rung.start == "correct" and clean is not None:
        open_ &= clean.status == Status.ROBUST
    return open_


def kept(rung: Rung, status: Tensor, right: Tensor) -> Tensor:
    """Which attacked images are stored: those that break, and before a stochastic judge all that any draw gets wrong.

    Args:
        rung: The rung.
        status: `(k,)` of the samples.
        right: `(k,)` right draws of the judge.
    """
    stored = status == Status.BROKEN
    if rung.judge.draws > 1 and rung.baseline is not None:
        stored |= (status != Status.ERROR) & (right < rung.judge.draws)
    return stored


def outcome(rung: Rung, ledger: Ledger, n: int, chunk_size: int) -> Outcome:
    """Collect a rung from the ledger.

    Args:
        rung: The rung.
        ledger: The ledger.
        n: Samples of the evaluation.
        chunk_size: Samples of a chunk.

    Raises:
        LedgerError: If a file is damaged or was edited.
    """
    parts, warnings, errors = [], [], []
    for chunk, start in enumerate(range(0, n, chunk_size)):
        indices = torch.arange(start, min(start + chunk_size, n))
        clean = None if rung.baseline is None else ledger.read(rung.baseline, "clean", chunk)
        units: list[Unit | None] = []
        for attack in rung.attacks:
            unit = ledger.read(rung.name, attack, chunk)
            if unit is None and not bool(alive(rung, clean, standing(rung, clean, units, indices)).any()):
                break
            units.append(unit)
            if unit is not None:
                warnings += unit.notes.get("warnings", [])
                errors += [unit.error] if unit.error else []
        parts.append(standing(rung, clean, units, indices))
    return Outcome(
        rung.name,
        torch.cat([part.status for part in parts]),
        tuple(dict.fromkeys(warnings)),
        tuple(dict.fromkeys(errors)),
        torch.cat([part.right for part in parts]),
        rung.judge.draws,
    )


def worst(name: str, outcomes: list[Outcome]) -> Outcome:
    """Per sample the worst over rungs: the adversary chooses for each image the attack that works."""
    stacked = torch.stack([outcome.status for outcome in outcomes])
    status = torch.full_like(stacked[0], int(Status.ROBUST))
    for bad in (Status.NOT_RUN, Status.ERROR, Status.BROKEN, Status.CLEAN_WRONG):
        status[(stacked == bad).any(dim=0)] = int(bad)
    return Outcome(name, status)
