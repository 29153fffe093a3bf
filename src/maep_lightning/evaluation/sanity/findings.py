"""What the sanity battery is asked and what it answers."""

from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from torch import Tensor

from maep_lightning.attacks.target import Target
from maep_lightning.evaluation.plan import Plan
from maep_lightning.evaluation.summary import Outcome

Verdict = Literal["pass", "warn", "fail", "skip"]
SCORES: dict[Verdict, float] = {"pass": 1.0, "warn": 0.5, "fail": 0.0}
"""How a verdict is drawn in a chart; a skipped check is not drawn."""


@dataclass(frozen=True)
class Finding:
    """What a probe says.

    Attributes:
        verdict: `pass`, `warn`, `fail` or `skip`.
        detail: One sentence for people.
        numbers: What it rests on.
    """

    verdict: Verdict
    detail: str
    numbers: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Check:
    """A finding with its name.

    Attributes:
        id: `S1` to `S14`.
        name: Of the check.
        verdict: As in `Finding`.
        detail: As in `Finding`.
        numbers: As in `Finding`.
    """

    id: str
    name: str
    verdict: Verdict
    detail: str
    numbers: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Sanity:
    """What the battery found.

    Attributes:
        samples: Images that the probes worked on.
        strict: Whether a fail withholds the headline.
        checks: One for each check.
    """

    samples: int
    strict: bool
    checks: tuple[Check, ...]

    @property
    def failed(self) -> tuple[Check, ...]:
        """The checks that failed."""
        return tuple(check for check in self.checks if check.verdict == "fail")

    @property
    def withheld(self) -> bool:
        """Whether there is to be no headline."""
        return self.strict and bool(self.failed)

    def check(self, id: str) -> Check:
        """The check with this id.

        Raises:
            KeyError: If there is none.
        """
        for check in self.checks:
            if check.id == id:
                return check
        raise KeyError(f"No check {id}.")

    def to_json(self) -> dict[str, Any]:
        """As results files have it."""
        verdicts = [check.verdict for check in self.checks]
        counts = {verdict: verdicts.count(verdict) for verdict in ("pass", "warn", "fail", "skip")}
        return {
            "samples": self.samples,
            "strict": self.strict,
            "withheld": self.withheld,
            "counts": counts,
            "checks": [asdict(check) for check in self.checks],
        }


@dataclass(frozen=True)
class Case:
    """What the probes work on.

    Attributes:
        bare: The classifier.
        defended: The purifier before the classifier, with its coins fixed if it is stochastic: gradients are those of
            a function then; None for no purifier.
        images: `(m, C, H, W)` float32 in [0, 1] on the device, the first of the evaluation.
        labels: `(m,)`.
        plan: The plan.
        outcomes: What the evaluation found of all samples, by rung.
        random: The same with its coins, if it is stochastic; else None.
        memory: Attacks that several probes need, made once.
    """

    bare: Target
    defended: Target | None
    images: Tensor
    labels: Tensor
    plan: Plan
    outcomes: dict[str, Outcome]
    random: Target | None = None
    memory: dict[Any, Tensor] = field(default_factory=dict, compare=False)

    @property
    def whole(self) -> Target:
        """What a white-box attacker attacks."""
        return self.defended or self.bare

    @property
    def differentiated(self) -> bool:
        """Whether a figure rests on gradients through the whole."""
        through = {"whitebox", "eot", "fixed_coins"} & self.plan.kinds
        return bool(through) or (self.defended is None and self.plan.threats != ("none",))

    @property
    def severity(self) -> Verdict:
        """What a doubt about gradients amounts to: a fail where a figure rests on them, else a warning."""
        return "fail" if self.differentiated else "warn"

    def first(self, count: int) -> "Case":
        """The same with fewer images."""
        images, labels = self.images[:count], self.labels[:count]
        return Case(self.bare, self.defended, images, labels, self.plan, self.outcomes, self.random)


Probe = Callable[[Case], Finding]
