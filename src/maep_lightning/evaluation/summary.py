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
    """

    name: str
    status: Tensor
    warnings: tuple[str, ...] = ()
    errors: tuple[str, ...] = ()

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
    def interval(self) -> tuple[float, float]:
        """Wilson 95 % interval; around the bounds when incomplete."""
        right = self.count(Status.ROBUST)
        open_ = self.count(Status.ERROR, Status.NOT_RUN)
        return wilson(right, self.n)[0], wilson(right + open_, self.n)[1]


def wilson(successes: int, n: int, z: float = 1.959963984540054) -> tuple[float, float]:
    """Wilson score interval of a proportion (Wilson 1927), 95 % by default.

    Args:
        successes: Number of successes.
        n: Number of trials.
        z: Quantile of the normal distribution.

    Returns:
        Low and high end, fractions.

    Raises:
        ValueError: If there is no trial.
    """
    if n < 1:
        raise ValueError("An interval needs at least one sample.")
    share = successes / n
    centre = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    return (0.0 if successes == 0 else centre - half), (1.0 if successes == n else centre + half)


def merge(rung: Rung, baseline: Tensor | None, units: list[Unit | None], indices: Tensor) -> Tensor:
    """Statuses of one chunk after some attacks.

    Wrong under any attack is wrong; else an error in any leaves the sample unknown; else a missing attack does.

    Args:
        rung: The rung.
        baseline: `(b,)` statuses on the clean images; None for a clean rung.
        units: Of the attacks so far; None for one that has not run.
        indices: `(b,)` global numbers of the chunk's samples, ascending and without gaps.

    Returns:
        `(b,)` uint8.
    """
    status = torch.full((len(indices),), int(Status.ROBUST), dtype=torch.uint8)
    if rung.start == "correct" and baseline is not None:
        status = baseline.clone()
    for unit in units:
        open_ = (status == Status.ROBUST) | (status == Status.ERROR)
        if unit is None:
            status[status == Status.ROBUST] = int(Status.NOT_RUN)
            continue
        now = torch.full_like(status, int(Status.ROBUST))
        now[unit.indices - indices[0]] = unit.status
        decided = (now == Status.BROKEN) | (now == Status.CLEAN_WRONG)
        status = torch.where(open_ & (decided | (now == Status.ERROR)), now, status)
    return status


def alive(rung: Rung, baseline: Tensor | None, status: Tensor) -> Tensor:
    """Which samples of a chunk the next attack works on: `(b,)` bool."""
    open_ = (status == Status.ROBUST) | (status == Status.ERROR)
    if rung.start == "correct" and baseline is not None:
        open_ &= baseline == Status.ROBUST
    return open_


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
        baseline = None
        if rung.baseline is not None:
            clean = ledger.read(rung.baseline, "clean", chunk)
            baseline = clean.status if clean else torch.full((len(indices),), int(Status.NOT_RUN), dtype=torch.uint8)
        units: list[Unit | None] = []
        for attack in rung.attacks:
            unit = ledger.read(rung.name, attack, chunk)
            if unit is None and not bool(alive(rung, baseline, merge(rung, baseline, units, indices)).any()):
                break
            units.append(unit)
            if unit is not None:
                warnings += unit.notes.get("warnings", [])
                errors += [unit.error] if unit.error else []
        parts.append(merge(rung, baseline, units, indices))
    return Outcome(rung.name, torch.cat(parts), tuple(dict.fromkeys(warnings)), tuple(dict.fromkeys(errors)))


def worst(name: str, outcomes: list[Outcome]) -> Outcome:
    """Per sample the worst over rungs: the adversary chooses for each image the attack that works."""
    stacked = torch.stack([outcome.status for outcome in outcomes])
    status = torch.full_like(stacked[0], int(Status.ROBUST))
    for bad in (Status.NOT_RUN, Status.ERROR, Status.BROKEN, Status.CLEAN_WRONG):
        status[(stacked == bad).any(dim=0)] = int(bad)
    return Outcome(name, status)
