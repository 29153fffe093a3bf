"""The heat map of a data set: systems by attacks, one panel for each ball."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

THREATS = ("none", "noise", "blind", "blind_worst", "square", "bpda", "eot", "whitebox", "fixed_coins", "worst")
"""From left to right: what the attacker knows."""
HEADS = {
    "none": "clean",
    "noise": "random noise",
    "blind_worst": "worst of\nall blind",
    "square": "queries",
    "bpda": "BPDA",
    "eot": "EOT",
    "whitebox": "white-box",
    "fixed_coins": "white-box,\ncoins fixed",
    "worst": "HEADLINE:\nworst of all",
}
PUBLISHED = (" (100 steps)", " (5000 queries)", " standard")

Row = dict[str, Any]
Column = tuple[str, str]
Rows = Mapping[tuple[str, str], Row]


def column_of(row: Row) -> Column:
    """Threat model and label of a row's column; blind attacks have one each, others share that of their threat."""
    if row["threat"] != "blind":
        return row["threat"], HEADS.get(row["threat"], row["threat"])
    if row["attack"].startswith("reduced"):
        return "blind", "reduced AutoAttack"
    label = row["attack"]
    for text in PUBLISHED:
        label = label.replace(text, "")
    name, bracket, budget = label.partition(" (")
    return "blind", f"{name.title() if name == 'square' else name.upper() if name.islower() else name}{bracket}{budget}"


def lowest(rows: Iterable[Row]) -> Row | None:
    """The row with the lowest figure, of equals that on most images; with bounds only, where an incomplete row is open.

    An incomplete row is open if its figure may lie below all that are known.
    """
    rows = list(rows)
    known = [row for row in rows if row["acc_robust"] is not None]
    least = min(known, key=lambda row: (row["acc_robust"], -row["n"]), default=None)
    incomplete = [row for row in rows if row["acc_robust"] is None]
    open_ = [row for row in incomplete if least is None or row["ci95"][0] < least["acc_robust"]]
    return open_[0] | within(rows) if open_ else least


def within(rows: Iterable[Row]) -> Row:
    """What is known of the lowest of several figures while it is open: no more than the least of their bounds."""
    low, high = map(min, zip(*(row["ci95"] for row in rows), strict=True))
    return {"acc_robust": None, "ci95": [low, high], "complete": False}


def draw_heatmap(dataset: str, systems: Mapping[tuple[str, ...], Rows], path: Path) -> None:
    """Draw the accuracy of each system under each attack; what was not measured, or not completely, stays grey.

    Args:
        dataset: Its name.
        systems: By data set, norm, eps, purifier, policy and classifier: rows by threat model and attack.
        path: Of the picture.
    """
    balls = list(dict.fromkeys(key[1:3] for key in systems))
    names = list(dict.fromkeys(key[3:] for key in systems))
    several = len({policy for _, policy, _ in names}) > 1
    panels = []
    for ball in balls:
        places: dict[tuple[tuple[str, ...], Column], list[Row]] = {}
        for key, rows in systems.items():
            for row in rows.values() if key[1:3] == ball else ():
                places.setdefault((key[3:], column_of(row)), []).append(row)
        values = {place: row for place, rows in places.items() if (row := lowest(rows))}
        found = dict.fromkeys(column for _, column in values)
        panels.append((ball, values, sorted(found, key=lambda column: THREATS.index(column[0]))))
    wide = sum(len(columns) for _, _, columns in panels)
    figure = Figure(figsize=(0.5 * wide + len(panels), 0.27 * len(names) + 0.5))
    axes = figure.subplots(1, len(panels), squeeze=False, sharey=True, width_ratios=[len(p[2]) for p in panels])[0]
    for axis, ((norm, eps), values, columns) in zip(axes, panels, strict=True):
        shares = np.full((len(names), len(columns)), np.nan)
        marks, alone = np.full(shares.shape, "·"), np.full(shares.shape, "")
        for (name, column), row in values.items():
            place = names.index(name), columns.index(column)
            marks[place] = "?"
            alone[place] = "*" if row.get("attacks", 2) < 2 else ""
            if row["acc_robust"] is not None:
                shares[place] = row["acc_robust"]
        axis.set_facecolor("0.92")
        image = axis.imshow(shares, cmap="viridis", vmin=0, vmax=1, aspect="auto")
        for (down, across), share in np.ndenumerate(shares):
            unknown = marks[down, across], "0.6"
            text, colour = unknown if np.isnan(share) else (f"{100 * share:.0f}", "w" if share < 0.6 else "k")
            axis.text(across, down, text + alone[down, across], ha="center", va="center", fontsize=8, color=colour)
        counts = sorted({row["n"] for row in values.values()})
        said = f"n = {counts[0]}" if len(counts) == 1 else f"n = {counts[0]} to {counts[-1]}, see the table"
        axis.set_title(f"{norm} eps {eps}, {said}", fontsize=10)
        axis.set_xticks(range(len(columns)), [label for _, label in columns], rotation=55, ha="right", fontsize=8)
        for edge in range(1, len(columns)):
            if columns[edge][0] != columns[edge - 1][0]:
                axis.axvline(edge - 0.5, color="w", linewidth=3)
        for edge in range(1, len(names)):
            if names[edge][:2] != names[edge - 1][:2]:
                axis.axhline(edge - 0.5, color="w", linewidth=3)
    labels = [f"{p} @ {policy}, {c}" if several else f"{p}, {c}" for p, policy, c in names]
    axes[0].set_yticks(range(len(names)), labels, fontsize=8)
    figure.subplots_adjust(wspace=0.08)
    figure.colorbar(image, ax=axes, label="accuracy", pad=0.01, fraction=0.02)
    legend = "· not measured; ? incomplete; * of one attack at most"
    title = f"{dataset}: accuracy in %; attacks on the bare classifier (blind)\nunless named otherwise; {legend}"
    figure.suptitle(title, fontsize=11, y=0.9 + 0.75 / figure.get_figheight())
    path.parent.mkdir(parents=True, exist_ok=True)
    FigureCanvasAgg(figure).print_figure(str(path), dpi=110, bbox_inches="tight")
