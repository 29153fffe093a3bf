"""From the measured cells of a study to its reports: rows, a spreadsheet, a table and heat maps."""

import csv
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from experiments.collect import percent
from experiments.transfer.heatmap import draw_heatmap, lowest, within
from experiments.transfer.matrix import NO_PURIFIER, Study
from experiments.transfer.measured import COLUMNS, Key, Measured, Row
from maep_lightning.evaluation.files import write_atomically

AUTO = ("AutoAttack", "reduced")
"""How the titles of AutoAttack begin."""


def write_reports(study: Study, measured: Sequence[Measured], run: dict[str, Any], folder: Path) -> None:
    """Write `results.json`, `results.csv`, `report.md` and a heat map for each data set.

    Args:
        study: The study.
        measured: Its cells that are on file.
        run: Where the figures come from.
        folder: Where the files go.
    """
    rows = unique_rows(measured)
    commits = sorted({cell.commit for cell in measured if cell.commit})
    content = {"schema": 1, "run": run, "measured_at": commits, "rows": rows}
    write_atomically(folder / "results.json", (json.dumps(content, indent=2) + "\n").encode())
    _write_csv(study, rows, folder / "results.csv")
    systems = group(measured)
    lines = [f"# Transfer, scale {study.name}", "", honesty(systems), ""]
    for dataset in dict.fromkeys(key[0] for key in systems):
        own = {key: cells for key, cells in systems.items() if key[0] == dataset}
        picture = f"heatmap-{dataset}.png"
        draw_heatmap(dataset, {key: best_rows(cells) for key, cells in own.items()}, folder / picture)
        lines += [f"## {dataset}", "", f"![accuracy by system and attack]({picture})", ""]
        for norm, eps in dict.fromkeys(key[1:3] for key in own):
            part = {key: cells for key, cells in own.items() if key[1:3] == (norm, eps)}
            lines += [f"### {norm} eps {eps}", "", *table(study, part), ""]
    lines += [
        "A figure keeps so much of the undefended classifier's clean accuracy on the same images (retention). Intervals"
        " are Wilson, 95 %. Every attack by itself is in results.csv. The worst of all blind is of the attacks that"
        " were measured, AutoAttack counted as one and random noise as none; those of unequal numbers do not compare.",
        "",
        f"Seed {run['seed']}; {run['hardware']}; {run['seconds'] / 60:.0f} process-minutes of attacking and judging;"
        f" measured at {', '.join(commit[:7] for commit in commits) or 'no commit'}; last command `{run['command']}`.",
    ]
    write_atomically(folder / "report.md", ("\n".join(lines) + "\n").encode())


def unique_rows(measured: Sequence[Measured]) -> list[Row]:
    """All rows, those of an undefended classifier once; of chunks of several sizes the strongest attack."""
    rows: dict[tuple[Any, ...], Row] = {}
    names = ("dataset", "n", "classifier", "purifier", "policy", "threat", "attack", "norm", "eps")
    for cell in measured:
        for row in cell.rows:
            key = tuple(row[name] for name in names)
            rows[key] = _lower(rows[key], row) if key in rows else row
    return list(rows.values())


def group(measured: Sequence[Measured]) -> dict[Key, list[Measured]]:
    """The cells of each system, those with most images first."""
    systems: dict[Key, list[Measured]] = {}
    for cell in sorted(measured, key=lambda cell: -cell.cell.n):
        systems.setdefault(cell.key, []).append(cell)
    order = list(dict.fromkeys(cell.key for cell in measured))
    return {key: systems[key] for key in order}


def best_rows(cells: Sequence[Measured]) -> dict[tuple[str, str], Row]:
    """Of each threat model and attack the row with most images, of equals the lowest."""
    rows: dict[tuple[str, str], Row] = {}
    for cell in cells:
        for row in cell.defended:
            key = row["threat"], row["attack"]
            before = rows.get(key)
            if before is None or row["n"] > before["n"]:
                rows[key] = row
            elif row["n"] == before["n"]:
                rows[key] = _lower(before, row)
    return rows


def _lower(one: Row, other: Row) -> Row:
    """The lower of two figures of the same attack on the same images: chunks of another size draw other starts."""
    return lowest([one, other]) or one


def headline(cells: Sequence[Measured]) -> Row | None:
    """The lowest figure over all that the adversary is allowed; None where no attacker met the purifier.

    In a cell that is the per-sample worst. Of the same attacks those on most images count, of several sets of attacks
    the strongest, blind ones included. Where an attack that was not completed could be stronger, or none on the
    purifier was completed, there is no figure but bounds, none of them above the interval of another figure.
    """
    if not any(cell.cell.knowing for cell in cells):
        return None
    shown = best_rows(cells)
    lasts: dict[bool, list[Row]] = {True: [], False: []}
    for cell in cells:  # the last row of a cell counts for all of it
        last = cell.defended[-1]
        best = shown[last["threat"], last["attack"]]
        if last["threat"] != "none" and best["n"] == last["n"]:
            lasts[cell.cell.knowing].append(best)
    found = lowest([*lasts[True], *lasts[False]])
    unknown = found if found and found["acc_robust"] is None else None
    if all(row["acc_robust"] is None for row in lasts[True]):
        unknown = lasts[True][0]
    return unknown | within(row for row in shown.values() if row["threat"] != "none") if unknown else found


def retention(row: Row) -> float | None:
    """Robust accuracy over the clean accuracy of the undefended classifier."""
    return None if row["acc_robust"] is None else row["acc_robust"] / (row["acc_undefended_clean"] or float("nan"))


def honesty(systems: dict[Key, list[Measured]]) -> str:
    """What the figures mean, for the head of a report."""
    heads = {key: row for key, cells in systems.items() if (row := headline(cells)) and row["acc_robust"] is not None}
    text = (
        "**The figure that counts is the last column: for each image the worst of everything that the adversary is"
        " allowed, attacks through the purifier included, and never above another figure of its line. A blind figure"
        " alone, whose attacker does not know of the purifier, is never it. That was measured for"
        f" {len(heads)} of {len(systems)} systems; the others say so.**"
    )
    if heads:
        key, row = max(heads.items(), key=lambda item: item[1]["acc_robust"])
        dataset, norm, eps, purifier, policy, classifier = key
        text += (
            f" The best of them is {purifier} @ {policy} before {classifier} on {dataset}, {norm} {eps}:"
            f" {_figure(row)} of {row['n']} images."
        )
    return text


def table(study: Study, systems: dict[Key, list[Measured]]) -> list[str]:
    """A line for each system in one ball."""
    lines = [
        "| purifier | trained on | policy | classifier | n | clean, undefended | clean, purified | blind AutoAttack |"
        " worst of all blind | white-box | headline: worst of all |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for key, cells in systems.items():
        purifier, policy, classifier = key[3:]
        rows, n = best_rows(cells), cells[0].cell.n
        auto = [row for (threat, attack), row in rows.items() if threat == "blind" and attack.startswith(AUTO)]
        all_blind = [row for row in rows.values() if row["threat"] == "blind_worst"]
        blind, worst = next(iter(auto), None), lowest(all_blind)
        white = [row for row in rows.values() if row["threat"] == "whitebox"]
        clean, head = next(row for row in rows.values() if row["threat"] == "none"), headline(cells)
        cells_ = [
            purifier, _trained_on(study, purifier), policy, classifier, str(n),
            percent(clean["acc_undefended_clean"]), percent(clean["acc_clean"]), _figure(blind, n),
            _figure(worst, n) + _counted(worst),
            "; ".join(f"{_figure(row, n)} ({row['attack']})" for row in white) or _figure(None), _figure(head, n),
        ]  # fmt: skip
        lines.append(f"| {' | '.join(cells_)} |")
    return lines


def _figure(row: Row | None, n: int | None = None) -> str:
    """Accuracy, interval and retention of a row; of how many images, where that is another number."""
    if row is None:
        return "not measured"
    low, high = row["ci95"]
    interval = f"{100 * low:.1f} to {100 * high:.1f}"
    if row["acc_robust"] is None:
        return f"incomplete, within {interval}"
    others = f", n = {row['n']}" if n is not None and row["n"] != n else ""
    return f"{percent(row['acc_robust'])} ({interval}{others}), keeps {percent(retention(row))}"


def _counted(row: Row | None) -> str:
    """Of how many attacks the worst of all blind is."""
    return "" if row is None else f", of {row['attacks']} attack{'' if row['attacks'] == 1 else 's'}"


def _trained_on(study: Study, purifier: str) -> str:
    """What a purifier was trained on; nothing where there is none."""
    return "nothing" if purifier == NO_PURIFIER else study.purifiers[purifier].origin


def _write_csv(study: Study, rows: Sequence[Row], path: Path) -> None:
    with path.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream)
        writer.writerow([*COLUMNS, "ci95_low", "ci95_high", "retention", "trained_on"])
        for row in rows:
            kept = retention(row)
            trained = _trained_on(study, row["purifier"]) if row["purifier"] else ""
            share = "" if kept is None else round(kept, 6)
            writer.writerow([*(row[name] for name in COLUMNS), *row["ci95"], share, trained])
