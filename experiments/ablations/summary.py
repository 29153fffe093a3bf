"""From the cells' results to a table: means and standard deviations over seeds, as JSON, CSV, Markdown and a plot."""

import csv
import io
import json
from collections import defaultdict
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from plots import plot

from maep_lightning.evaluation.files import write_atomically

Found = list[tuple[str, str, int, Path]]
Values = dict[str, list[float]]
Cells = dict[tuple[str, str], Values]
SECONDS = "training core s"


def metric(row: dict[str, Any]) -> str:
    """What the tables call a row of a results file: its threat, and the attack where there are several."""
    names = {"none": "clean", "blind": f"blind {row['attack']}", "blind_worst": "blind worst"}
    return names.get(row["threat"], row["threat"])


def gather(contents: list[tuple[str, str, dict[str, Any]]]) -> Cells:
    """Accuracies and seconds of training by cell and metric, a value for each seed."""
    cells: Cells = defaultdict(lambda: defaultdict(list))
    for row, column, content in contents:
        values = cells[row, column]
        for measured in content["rows"]:
            values[metric(measured)].append(measured["acc_robust"])
        values[SECONDS].append(content["run"]["training_core_seconds"])
    return cells


def spread(values: list[float]) -> float:
    """Standard deviation over seeds, of the sample; 0 for one seed, which has none."""
    return stdev(values) if len(values) > 1 else 0.0


def summarise(name: str, table: dict[str, Any], found: Found, folder: Path, scale: str) -> None:
    """Write NAME.json (schema 1, docs/reading-a-report.md#resultsjson), NAME.csv, NAME.md and NAME.png.

    Args:
        name: Of the table.
        table: Its title, question, findings by scale and plot.
        found: Row, column, seed and results file of each cell.
        folder: Where the files go.
        scale: Name of the scale.
    """
    contents = [(row, column, seed, json.loads(file.read_text())) for row, column, seed, file in found]
    cells = gather([(row, column, content) for row, column, _, content in contents])
    runs = [content["run"] for *_, content in contents]
    # Of the judging; trainings are shared by cells, so each row says what that of its cell took.
    run = {**runs[-1], "seconds": round(sum(run["seconds"] for run in runs), 1)}
    del run["training_core_seconds"]
    head = json.dumps({"schema": 1, "run": run})
    rows = []
    for row, column, seed, content in contents:
        names = {"table": name, "row": row, "column": column, "seed": seed}
        trained = {"training_core_seconds": content["run"]["training_core_seconds"]}
        rows += [json.dumps({**names, **measured, **trained}) for measured in content["rows"]]
    _write(folder / f"{name}.json", f'{head[:-1]}, "rows": [\n' + ",\n".join(rows) + "\n]}\n")
    _write(folder / f"{name}.csv", _csv(cells))
    seeds = 1 + max(seed for _, _, seed, _ in found)
    about = f"{seeds} seeds, {run['hardware']}. {_threats(contents[-1][-1])}"
    lines = [f"## {table['title']}", "", table["question"].strip(), "", *markdown(cells), "", about, ""]
    lines += [f"![{table['title']}]({name}.png)", ""]
    if finding := table.get("found", {}).get(scale):
        lines += [f"**Found.** {finding.strip()}", ""]
    _write(folder / f"{name}.md", "\n".join(lines))
    plot(cells, table, _radius(contents[-1][-1]), folder / f"{name}.png")


def _write(path: Path, text: str) -> None:
    write_atomically(path, text.encode())


def _csv(cells: Cells) -> str:
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(["row", "column", "metric", "seeds", "mean", "std"])
    for key, values in cells.items():
        for name, of_seeds in values.items():
            writer.writerow([*key, name, len(of_seeds), f"{mean(of_seeds):.4f}", f"{spread(of_seeds):.4f}"])
    return stream.getvalue()


def markdown(cells: Cells) -> list[str]:
    """The lines of a table: per cent, mean and standard deviation over seeds; seconds of training last."""
    metrics = list(dict.fromkeys(name for values in cells.values() for name in values if name != SECONDS))
    columns = any(column for _, column in cells)
    lines = ["| " + " | ".join(["", *([""] if columns else []), *metrics, SECONDS]) + " |"]
    lines.append("|" + "---|" * (len(metrics) + 2 + columns))
    for (row, column), values in cells.items():
        shown = [_percent(values[name]) if name in values else "" for name in metrics]
        words = [row, *([column] if columns else []), *shown, f"{mean(values[SECONDS]):.0f}"]
        lines.append("| " + " | ".join(words) + " |")
    return lines


def _percent(values: list[float]) -> str:
    return f"{100 * mean(values):.1f} ± {100 * spread(values):.1f}" if len(values) > 1 else f"{100 * values[0]:.1f}"


def _radius(content: dict[str, Any]) -> str:
    attacked = content["rows"][-1]
    return f"{attacked['norm']} eps {attacked['eps']}"


def _threats(content: dict[str, Any]) -> str:
    """What every robust figure of the table means."""
    rows = content["rows"]
    named = [row for row in rows if row["threat"] in ("blind_worst", "whitebox")]
    parts = [f"{metric(row)} is {row['attack']}, n = {row['n']}" for row in named]
    if blind := next((row["n"] for row in rows if row["threat"] == "blind"), None):
        parts.insert(0, f"blind attacks see the bare classifier alone, n = {blind}")
    said = f"Images of the validation split, {_radius(content)}"
    bare = f"Bare classifier on clean images: {100 * rows[0]['acc_undefended_clean']:.1f} %."
    return "; ".join([said, *parts]) + f". {bare}"
