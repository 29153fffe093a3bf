"""The plot of a table."""

from pathlib import Path
from statistics import mean, stdev
from typing import Any

Cells = dict[tuple[str, str], dict[str, list[float]]]


def plot(cells: Cells, table: dict[str, Any], radius: str, path: Path) -> None:
    """Draw a table.

    Args:
        cells: Values of each seed by (row, column) and metric.
        table: `title`, and `plot`: its `kind` and the `metrics` to show (all accuracies if not given).
            `lines`: a panel for each metric, rows on the axis, a line for each column. `heat`: rows against metrics.
            `dial`: the second metric against the first, a mark for each row.
        radius: Norm and radius of all attacks, in words.
        path: The PNG.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    settings = table.get("plot", {})
    every = dict.fromkeys(name for values in cells.values() for name in values if "core s" not in name)
    metrics = [name for name in settings.get("metrics", every) if name in every]
    figure = {"lines": _lines, "heat": _heat, "dial": _dial}[settings.get("kind", "lines")](pyplot, cells, metrics)
    figure.suptitle(f"{table['title']} ({radius})")
    figure.tight_layout()
    figure.savefig(path, dpi=100)
    pyplot.close(figure)


def _percent(values: list[float]) -> tuple[float, float]:
    """Mean and standard deviation."""
    return 100 * mean(values), 100 * stdev(values) if len(values) > 1 else 0.0


def _axes(cells: Cells) -> tuple[list[str], list[str]]:
    rows, columns = (list(dict.fromkeys(key[place] for key in cells)) for place in (0, 1))
    return rows, columns


def _lines(pyplot: Any, cells: Cells, metrics: list[str]) -> Any:
    rows, columns = _axes(cells)
    width = max(3.0, 0.5 * len(rows) + 1.2)
    figure, axes = pyplot.subplots(1, len(metrics), figsize=(width * len(metrics), 4.2), sharey=True, squeeze=False)
    for axis, name in zip(axes[0], metrics, strict=True):
        for number, column in enumerate(columns):
            points = [(rows.index(r), _percent(v[name])) for (r, c), v in cells.items() if c == column and name in v]
            if points:
                places = [place + 0.06 * (number - (len(columns) - 1) / 2) for place, _ in points]
                heights, errors = zip(*(values for _, values in points), strict=True)
                axis.errorbar(places, heights, errors, fmt="o-" if column else "o", ms=4, lw=1, capsize=2, label=column)
        axis.set(title=name, ylim=(-3, 103), xlim=(-0.5, len(rows) - 0.5))
        axis.set_xticks(range(len(rows)), rows, rotation=40, ha="right", rotation_mode="anchor")
        axis.grid(axis="y", alpha=0.3)
    axes[0, 0].set_ylabel("accuracy, %")
    if any(columns):
        axes[0, -1].legend(fontsize=7)
    return figure


def _heat(pyplot: Any, cells: Cells, metrics: list[str]) -> Any:
    labels = [" ".join(filter(None, key)) for key in cells]
    values = [[_percent(of[name]) for name in metrics] for of in cells.values()]
    figure, axis = pyplot.subplots(figsize=(1.3 * len(metrics) + 2.5, 0.6 * len(labels) + 2))
    axis.imshow([[m for m, _ in line] for line in values], vmin=0, vmax=100, cmap="viridis", aspect="auto")
    for y, line in enumerate(values):
        for x, (centre, error) in enumerate(line):
            colour = "white" if centre < 60 else "black"
            axis.text(x, y, f"{centre:.0f} ± {error:.0f}", ha="center", va="center", color=colour, fontsize=8)
    axis.set_xticks(range(len(metrics)), metrics, rotation=30, ha="right", rotation_mode="anchor")
    axis.set_yticks(range(len(labels)), labels)
    return figure


def _dial(pyplot: Any, cells: Cells, metrics: list[str]) -> Any:
    across, up = metrics
    figure, axis = pyplot.subplots(figsize=(6.5, 4.8))
    for number, key in enumerate(cells):
        (x, dx), (y, dy) = _percent(cells[key][across]), _percent(cells[key][up])
        label = " ".join(filter(None, key))
        axis.errorbar(x, y, dy, dx, fmt="osD^v<>P*X"[number % 10], ms=6, capsize=2, label=label)
    axis.set(xlabel=f"{across}, %", ylabel=f"{up}, %")
    axis.grid(alpha=0.3)
    axis.legend(fontsize=7)
    return figure
