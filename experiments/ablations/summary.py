"""From the cells' results to one file, one table and one figure: means and standard deviations over seeds."""

import csv
import json
from collections import defaultdict
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import yaml

Named = tuple[dict[str, Any], Path]
Key = tuple[str, str, str]


def metric(row: dict[str, Any]) -> str | None:
    """What a column of the tables is called; None for a row that is about the bare classifier or follows from others."""
    if row["purifier"] is None or row["threat"] == "worst":
        return None
    split = "val " if row["split"] == "validation" else ""
    if row["threat"] == "none":
        return f"{split}clean"
    attack = "" if row["threat"] == "whitebox" else f" {row['attack'].split(',')[0].split(' ')[0]}"
    return f"{split}{row['threat']}{attack}"


def gather(named: list[Named]) -> dict[Key, dict[str, list[float]]]:
    """Accuracies of each seed by (table, row, column) and metric, and the seconds of training."""
    found: dict[Key, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for names, file in named:
        content = json.loads(file.read_text())
        values = found[names["table"], names["row"], names["column"]]
        values["seconds"].append(content["run"]["core_seconds"])
        for row in content["rows"]:
            if (name := metric(row)) and row["complete"]:
                values[name].append(row["acc_robust"])
    return found


def spread(values: list[float]) -> float:
    """Standard deviation over seeds; 0 for one seed, which has none."""
    return stdev(values) if len(values) > 1 else 0.0


def summarise(scale: str, named: list[Named], tables: Path, results: Path) -> None:
    """Write `SCALE.json` (DESIGN: schema 1), `SCALE.csv`, `SCALE.md` and `SCALE-TABLE.png` for the cells that are given.

    Args:
        scale: Name of the scale.
        named: Each cell's names (table, row, column, seed) and its results file.
        tables: Folder of the tables' YAML files.
        results: Where the files go.
    """
    results.mkdir(parents=True, exist_ok=True)
    contents = [(names, json.loads(file.read_text())) for names, file in named]
    rows = [{**names, **row, "core_seconds": c["run"]["core_seconds"]} for names, c in contents for row in c["rows"]]
    run = {**contents[-1][1]["run"], "seconds": round(sum(c["run"]["seconds"] for _, c in contents), 1)}
    _write(results / f"{scale}.json", json.dumps({"schema": 1, "run": run, "rows": rows}, indent=1) + "\n")
    found = gather(named)
    with (results / f"{scale}.csv").open("w", newline="") as stream:
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerow(["table", "row", "column", "metric", "seeds", "mean", "std"])
        for key, values in found.items():
            for name, of_seeds in values.items():
                writer.writerow([*key, name, len(of_seeds), f"{mean(of_seeds):.4f}", f"{spread(of_seeds):.4f}"])
    lines = [f"# Ablations at scale {scale}", "", f"{run['hardware']}; commit {run['commit']}.", ""]
    for table in dict.fromkeys(names["table"] for names, _ in named):
        about = yaml.safe_load((tables / f"{table}.yaml").read_text())
        cells = {key[1:]: values for key, values in found.items() if key[0] == table}
        lines += [f"## {about['title']}", "", about["question"].strip(), "", *_markdown(cells), ""]
        lines += [f"![{about['title']}]({scale}-{table}.png)", ""]
        _plot(cells, about, results / f"{scale}-{table}.png")
    _write(results / f"{scale}.md", "\n".join(lines))


def _write(path: Path, text: str) -> None:
    partial = path.with_name(path.name + ".partial")
    partial.write_text(text)
    partial.replace(path)


def _markdown(cells: dict[tuple[str, str], dict[str, list[float]]]) -> list[str]:
    """Per cent, mean and standard deviation; seconds of training in the last column."""
    metrics = [name for name in dict.fromkeys(name for values in cells.values() for name in values) if name != "seconds"]
    columns = any(column for _, column in cells)
    lines = ["| " + " | ".join(["", *([""] if columns else []), *metrics, "seeds", "core s"]) + " |"]
    lines.append("|" + "---|" * (len(metrics) + 3 + columns))
    for (row, column), values in cells.items():
        shown = [_percent(values[name]) if name in values else "" for name in metrics]
        counts = [str(len(values["seconds"])), f"{mean(values['seconds']):.0f}"]
        lines.append("| " + " | ".join([row, *([column] if columns else []), *shown, *counts]) + " |")
    return lines


def _percent(values: list[float]) -> str:
    return f"{100 * mean(values):.1f}" + (f" ± {100 * spread(values):.1f}" if len(values) > 1 else "")


def _plot(cells: dict[tuple[str, str], dict[str, list[float]]], about: dict[str, Any], path: Path) -> None:
    """A panel for each metric on test images; rows on the axis, a line for each column."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    metrics = dict.fromkeys(name for values in cells.values() for name in values if not name.startswith("val "))
    metrics.pop("seconds")
    rows, columns = (list(dict.fromkeys(key[i] for key in cells)) for i in (0, 1))
    figure, axes = pyplot.subplots(1, len(metrics), figsize=(3.2 * len(metrics) + 1, 3.6), sharey=True, squeeze=False)
    for axis, name in zip(axes[0], metrics, strict=True):
        for number, column in enumerate(columns):
            points = [(rows.index(r), v[name]) for (r, c), v in cells.items() if c == column and name in v]
            if points:
                places = [place + 0.06 * (number - (len(columns) - 1) / 2) for place, _ in points]
                heights = [100 * mean(values) for _, values in points]
                errors = [100 * spread(values) for _, values in points]
                axis.errorbar(places, heights, errors, fmt="o-", ms=4, lw=1, capsize=2, label=column or None)
        axis.set(title=name, ylim=(-3, 103), xlim=(-0.5, len(rows) - 0.5))
        axis.set_xticks(range(len(rows)), rows, rotation=35, ha="right")
        axis.grid(axis="y", alpha=0.3)
    axes[0, 0].set_ylabel("accuracy, %")
    if any(columns):
        axes[0, -1].legend(fontsize=7)
    figure.suptitle(about["title"])
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    pyplot.close(figure)
