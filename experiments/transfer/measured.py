"""What is on file of a cell: the rows of its attacks, and the worst of those that a study asks for."""

import csv
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from experiments.transfer.matrix import Cell
from maep_lightning.evaluation.plan import Manifest
from maep_lightning.evaluation.summary import wilson
from maep_lightning.evaluation.threats import attacks_title

Row = dict[str, Any]
Key = tuple[str, str, str, str, str, str]
"""A system in a ball: data set, norm, eps, purifier, policy and classifier."""

COLUMNS = (
    *("dataset", "split", "n", "classifier", "purifier", "policy", "threat", "attack", "norm", "eps"),
    *("acc_undefended_clean", "acc_clean", "acc_robust", "complete", "seconds"),
)
"""What every row has besides its interval; the readings of stochastic systems, and of how many attacks the worst of all
blind is, are in `results.json` only."""


@dataclass(frozen=True)
class Measured:
    """A cell, and what is on file of it.

    Attributes:
        cell: The cell.
        rows: As `results.json` has them, and the worst of the blind attacks, with their number but for random noise as
            `attacks`; without the worst of all where no attacker meets the purifier, since then it would be a headline
            of blind attacks.
        commit: Of the code that measured it.
    """

    cell: Cell
    rows: tuple[Row, ...]
    commit: str | None = None

    @classmethod
    def read(cls, cell: Cell, folder: Path) -> "Measured | None":
        """What is on file of a cell, of the threats that are asked for; None if it was not finished.

        Args:
            cell: The cell, as it is asked for; its purifier and policy are what the rows name.
            folder: Its run folder.
        """
        try:
            content = json.loads((folder / "results.json").read_text())
        except (FileNotFoundError, ValueError):  # a damaged one is made anew from the ledger
            return None
        manifest = Manifest.read(folder)
        if content.get("plan") != manifest.hash:  # stopped while further threats were measured
            return None
        whole = replace(cell, threats=tuple(manifest.values["threats"]))
        cell = replace(cell, threats=tuple(threat for threat in whole.threats if threat in cell.threats))
        rows, audit = list(content["rows"]), folder / "audit.csv"
        if cell.threats != whole.threats:
            rows = _asked(whole, cell, rows, str(manifest.values["attack_title"]), audit)
        rows = [row for row in rows if cell.knowing or row["threat"] != "worst"]
        if cell.blind:
            title = f"worst of {', '.join(cell.blind)}"
            attacks = sum(cell.plan.named[text].kind != "noise" for text in cell.blind)
            blind = _worst(cell, cell.blind, "blind_worst", title, rows[-1], audit)
            rows.insert(len(rows) - cell.knowing, blind | {"attacks": attacks})
        named = {"purifier": cell.purifier, "policy": cell.policy}
        rows = [row if row["purifier"] is None else row | named for row in rows]
        if cell.budget:  # the other titles have theirs
            said = ", ".join(f"{name} {value}" for name, value in cell.budget)
            worst = ("worst", "blind_worst")
            rows = [row | {"attack": f"{row['attack']} ({said})"} if row["threat"] in worst else row for row in rows]
        return cls(cell, tuple(rows), content["run"]["commit"])

    @property
    def key(self) -> Key:
        """The system, and the ball."""
        cell = self.cell
        return cell.dataset, cell.norm, cell.eps, cell.purifier, cell.policy, cell.classifier

    @property
    def defended(self) -> list[Row]:
        """The rows of the purifier."""
        return [row for row in self.rows if row["purifier"] is not None]


def _asked(whole: Cell, cell: Cell, rows: Sequence[Row], plain: str, audit: Path) -> list[Row]:
    """The rows of the threats of `cell` among those of `whole`, and the worst of them alone.

    Args:
        whole: The cell with all threats on file.
        cell: The cell with those that are asked for.
        rows: As `results.json` has them.
        plain: Title of the worst of AutoAttack alone.
        audit: The audit log.
    """
    titles = {
        (kind, attacks_title(names, whole.plan.settings)): text
        for text, (kind, names) in whole.plan.named.items()
        if names
    }
    kept: dict[str, Row] = {}
    bare = []
    for row in rows:
        threat = titles.get((row["threat"], row["attack"]), row["threat"])
        if row["purifier"] is None:
            if row["threat"] == "none" or "blind" in cell.threats:
                bare.append(row)
        elif threat in cell.threats:
            kept[threat] = row
    attacked = [threat for threat in kept if threat != "none"]
    found = [*bare, *kept.values()]
    if len(attacked) > 1:
        title = plain if set(attacked) <= {"blind", "whitebox"} else f"worst of {', '.join(attacked)}"
        worst = _worst(cell, attacked, "worst", title, found[-1], audit)
        found.append(worst | {"seconds": round(sum(kept[threat]["seconds"] for threat in attacked), 1)})
    return found


def _worst(cell: Cell, attacked: Sequence[str], threat: str, title: str, like: Row, audit: Path) -> Row:
    """The accuracy that is left of each image's worst attack, counted from the audit log.

    Args:
        cell: The cell.
        attacked: The threats whose attacks count.
        threat: What the row is called.
        title: What its attacks are called.
        like: A row of the same system.
        audit: The audit log.
    """
    rungs = {"none", *attacked}
    with audit.open(newline="", encoding="utf-8") as stream:
        lines = [line for line in csv.DictReader(stream) if line["rung"] in rungs]
    fallen = {line["index"] for line in lines if line["status"] in ("BROKEN", "CLEAN_WRONG")}
    failed = {line["index"] for line in lines if line["status"] == "ERROR"} - fallen
    right, n = cell.n - len(fallen), cell.n
    found = {
        "threat": threat,
        "attack": title,
        "eps": cell.eps,
        "acc_robust": None if failed else right / n,
        "ci95": [round(wilson(right - len(failed), n)[0], 6), round(wilson(right, n)[1], 6)],
        "complete": not failed,
        "seconds": 0.0,
    }
    return {name: like[name] for name in COLUMNS if name in like} | found  # not what its own attack alone has
