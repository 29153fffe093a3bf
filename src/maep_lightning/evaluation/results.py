"""Results of an evaluation, and the file they are kept in."""

import json
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from maep_lightning.evaluation.files import write_atomically
from maep_lightning.evaluation.ledger import Ledger
from maep_lightning.evaluation.plan import Manifest, Plan
from maep_lightning.evaluation.progress import Timings
from maep_lightning.evaluation.provenance import describe_run
from maep_lightning.evaluation.rungs import CLEAN, UNDEFENDED, UNDEFENDED_ATTACKED, Rung
from maep_lightning.evaluation.sanity.findings import Sanity
from maep_lightning.evaluation.summary import Outcome, outcome, worst

SCHEMA = 1

PICTURES = ("report.png", "report.html")
"""Files with pictures, in the order in which they are written; with the last one an evaluation is finished."""


@dataclass(frozen=True)
class Subject:
    """Names of what is evaluated, for people.

    Args:
        dataset: The data set.
        split: Its split.
        classifier: The classifier.
        purifier: The purifier; ignored without one.
        policy: How the purifier treats resolutions (`native`, `tile`, ...).
        class_names: Names of the classes, for the figure; numbers when None.
        training_data: What the purifier and the classifier were trained on.
    """

    dataset: str = "unnamed data"
    split: str = "test"
    classifier: str = "classifier"
    purifier: str = "purifier"
    policy: str = "native"
    class_names: tuple[str, ...] | None = None
    training_data: str = "not stated"

    @property
    def defence(self) -> str:
        """The purifier, and its resolution policy where that is not `native`."""
        return self.purifier if self.policy == "native" else f"{self.purifier} (policy {self.policy})"

    def class_name(self, label: int) -> str:
        """The name of a class, or its number where there is none, as of a logit beyond the data's classes.

        Args:
            label: Number of the class.
        """
        names = self.class_names or ()
        return names[label] if 0 <= label < len(names) else str(label)


@dataclass(frozen=True)
class Results:
    """What an evaluation found.

    Attributes:
        rows: One for each system and threat, as `results.json` has them.
        run: Where the numbers come from.
        outcomes: Name of a rung to what became of each sample.
        plan: The plan.
        manifest: The plan bound to networks and data.
        subject: Names.
        ledger_hash: SHA-256 of the ledger.
        sanity: What the sanity battery found; None when it was not run.
    """

    rows: list[dict[str, Any]]
    run: dict[str, Any]
    outcomes: dict[str, Outcome]
    plan: Plan
    manifest: Manifest
    subject: Subject
    ledger_hash: str = ""
    sanity: Sanity | None = None

    @property
    def by_rung(self) -> dict[str, dict[str, Any]]:
        """The rows by the names of their rungs, in their order."""
        return dict(zip(self.outcomes, self.rows, strict=True))

    @property
    def attacks(self) -> str:
        """The attacks that ran, see `name_attacks`."""
        return name_attacks(row["attack"] for row in self.rows if row["threat"] not in ("none", "worst"))

    @property
    def complete(self) -> bool:
        """Whether every rung is complete."""
        return all(row["complete"] for row in self.rows)

    def row(self, threat: str, defended: bool = True) -> dict[str, Any]:
        """The row of a threat, with the purifier or of the bare classifier.

        Args:
            threat: Name of the threat, with its attacks where the plan names them, such as `blind:fgsm`.
            defended: Whether the purifier is part of it.

        Raises:
            KeyError: If it was not measured.
        """
        found = self.by_rung.get(threat if defended else f"undefended-{threat}")
        if found is None:
            raise KeyError(f"No row for threat {threat} {'with' if defended else 'without'} a purifier.")
        return found

    def checked(self, sanity: Sanity) -> "Results":
        """The same with a sanity battery, which withholds the headline when it is strict and a check failed.

        The headline is the last row: the per-sample worst, or the only attack there is. Of a withheld one the upper
        bound stays, since the adversarial images are real.

        Args:
            sanity: What was found.
        """
        rows = self.rows
        if sanity.withheld and rows[-1]["threat"] != "none":
            rows = [*rows[:-1], rows[-1] | {"acc_robust": None, "ci95": [0.0, rows[-1]["ci95"][1]], "complete": False}]
        return replace(self, rows=rows, sanity=sanity)

    def write(self, path: Path) -> None:
        """Write `results.json`.

        Args:
            path: The file.
        """
        content: dict[str, Any] = {"schema": SCHEMA, "run": self.run, "rows": self.rows}
        content["plan"] = self.manifest.hash
        if self.sanity is not None:
            content["sanity"] = self.sanity.to_json()
        write_atomically(path, (json.dumps(content, indent=2) + "\n").encode())


def name_attacks(titles: Iterable[str]) -> str:
    """The attacks of an evaluation, each once, with their budgets.

    Args:
        titles: What results call the attacks of each rung that attacks.
    """
    return "; ".join(dict.fromkeys(titles)) or "no attack"


def collect(
    plan: Plan, manifest: Manifest, rungs: list[Rung], ledger: Ledger, run_dir: Path, subject: Subject, seconds: float
) -> Results:
    """Count what is in the ledger.

    Args:
        plan: The plan.
        manifest: The plan bound to networks and data.
        rungs: The rungs that were climbed.
        ledger: The ledger.
        run_dir: The run folder, for the times.
        subject: Names.
        seconds: Wall-clock time of this call.
    """
    outcomes = settle(plan, manifest, rungs, ledger)
    rows = _rows(outcomes, rungs, manifest, subject, Timings(run_dir).seconds())
    run = describe_run(plan.seed, seconds)
    return Results(rows, run, outcomes, plan, manifest, subject, ledger.hash())


def settle(plan: Plan, manifest: Manifest, rungs: list[Rung], ledger: Ledger) -> dict[str, Outcome]:
    """What became of each sample on each rung, and on the worst of them where there are several.

    Args:
        plan: The plan.
        manifest: The plan bound to networks and data.
        rungs: The rungs that were climbed.
        ledger: The ledger.
    """
    n = int(manifest.values["n"])
    outcomes = {rung.name: outcome(rung, ledger, n, plan.chunk_size) for rung in rungs}
    defended = [rung.name for rung in rungs if not rung.name.startswith("undefended-")]
    if len([name for name in defended if name != CLEAN]) > 1:
        outcomes["worst"] = worst("worst", [outcomes[name] for name in defended])
    return outcomes


def tally(plan: Plan, manifest: Manifest, rungs: list[Rung], ledger: Ledger) -> list[dict[str, Any]]:
    """The rows that the ledger alone tells, without names and times.

    Args:
        plan: The plan.
        manifest: The plan bound to networks and data.
        rungs: The rungs that were climbed.
        ledger: The ledger.
    """
    return _rows(settle(plan, manifest, rungs, ledger), rungs, manifest, Subject(), {})


def title_of(rung: Rung, manifest: Manifest) -> str:
    """How results name the attacks of a rung.

    Args:
        rung: The rung.
        manifest: The plan bound to networks and data.
    """
    return rung.title or str(manifest.values["attack_title"])


def _rows(
    outcomes: dict[str, Outcome], rungs: list[Rung], manifest: Manifest, subject: Subject, spent: dict[str, float]
) -> list[dict[str, Any]]:
    titles = {rung.name: title_of(rung, manifest) for rung in rungs}
    attacked = [name for name in outcomes if not name.startswith("undefended-") and name not in (CLEAN, "worst")]
    plain = all(name in ("blind", "whitebox") for name in attacked)
    titles["worst"] = manifest.values["attack_title"] if plain else f"worst of {', '.join(attacked)}"
    spent = spent | {"worst": sum(spent.get(name, 0.0) for name in attacked)}
    return [
        _row(name, titles[name], result, outcomes, manifest, subject, spent.get(name, 0.0))
        for name, result in outcomes.items()
    ]


def _row(
    name: str,
    title: str,
    result: Outcome,
    outcomes: dict[str, Outcome],
    manifest: Manifest,
    subject: Subject,
    seconds: float,
) -> dict[str, Any]:
    bare = name.startswith("undefended-")
    threat = {UNDEFENDED: "none", UNDEFENDED_ATTACKED: "whitebox"}.get(name, name.partition(":")[0])
    clean = outcomes[UNDEFENDED if bare else CLEAN]
    low, high = result.interval
    readings = {} if result.readings is None else {"readings": result.readings}
    return {
        "dataset": subject.dataset,
        "split": subject.split,
        "n": result.n,
        "classifier": subject.classifier,
        "purifier": None if bare else subject.purifier,
        "policy": None if bare else subject.policy,
        "threat": threat,
        "attack": "none" if threat == "none" else title,
        "norm": manifest.values["norm"],
        "eps": "0" if threat == "none" else manifest.values["eps"],
        "acc_undefended_clean": outcomes[UNDEFENDED].accuracy,
        "acc_clean": clean.accuracy,
        "acc_robust": result.accuracy,
        "ci95": [round(low, 6), round(high, 6)],
        "complete": result.complete,
        "seconds": round(seconds, 1),
    } | readings
