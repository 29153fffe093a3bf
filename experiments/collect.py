"""One results file and one table from the attack runs of a study.

usage: python experiments/collect.py RUN [--reference FILE]

Reads RUN/PURIFIER/{blind,attack,ladder}/results.json and the seconds that each stage noted, and writes RUN/results.json
(schema 1, docs/reading-a-report.md#resultsjson) and RUN/report.md.
"""

import argparse
import json
from pathlib import Path
from typing import Any


def minutes(run: Path) -> dict[str, float]:
    """Minutes of each finished stage; those of a stage that was killed and resumed count from its last start."""
    noted = sorted(run.rglob("seconds"), key=lambda file: file.stat().st_mtime)
    return {str(file.parent.relative_to(run)): round(sum(map(int, file.read_text().split())) / 60, 1) for file in noted}


def rows_of(run: Path) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """The rows of all attack runs, each once, and the runs they come from.

    The worst of a run is over its own rungs: of those of several runs the lowest stays, of equals that of the ladder.
    """
    rows: dict[tuple[Any, ...], dict[str, Any]] = {}
    runs: list[dict[str, Any]] = []
    stages = ("blind", "attack", "ladder")
    names = ("n", "classifier", "purifier", "policy", "threat", "norm", "eps")
    for file in [path for stage in stages for path in sorted(run.glob(f"*/{stage}/results.json"))]:
        content = json.loads(file.read_text())
        runs.append(content["run"])
        for row in content["rows"]:
            key = tuple(row[name] for name in names)
            if row["threat"] != "worst":
                rows.setdefault((*key, row["attack"]), row)
            elif key not in rows or row["ci95"] <= rows[key]["ci95"]:
                rows.pop(key, None)  # so that it comes after what it is the worst of
                rows[key] = row
    if not runs:
        raise SystemExit(f"There are no attack results under {run}: run the study's make target first.")
    return list(rows.values()), runs


def percent(fraction: float | None) -> str:
    """A fraction as people read it."""
    return "not known" if fraction is None else f"{100 * fraction:.1f} %"


def table(rows: list[dict[str, Any]], published: list[dict[str, Any]]) -> list[str]:
    """Our rows and, below them, the published ones."""
    lines = [
        "| system | threat model | attack | n | clean | robust | 95 % interval |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        system = f"{row['classifier']}, " + (f"purifier {row['purifier']}" if row["purifier"] else "undefended")
        low, high = row["ci95"]
        lines.append(
            f"| {system} | {row['threat']} | {row['attack']} | {row['n']} | {percent(row['acc_clean'])} |"
            f" {percent(row['acc_robust'])} | {100 * low:.1f} to {100 * high:.1f} |"
        )
    if published:
        lines += ["", "Published by others, on their classifiers; compare within a threat model:", ""]
        lines += [
            "| system | classifier | threat model | attack | clean | robust | source |",
            "|---|---|---|---|---|---|---|",
        ]
        lines += [
            f"| {row['system']} | {row['classifier']} | {row['threat']} | {row['attack']} | {percent(row['clean'])} |"
            f" {percent(row['robust'])} | {row['source']} |"
            for row in published
        ]
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--reference", type=Path)
    arguments = parser.parse_args()
    rows, runs = rows_of(arguments.run)
    published = json.loads(arguments.reference.read_text())["rows"] if arguments.reference else []
    rows.sort(key=lambda row: (row["purifier"] or "", -row["n"]))
    stages = minutes(arguments.run)
    run = {**runs[-1], "seconds": round(60 * sum(stages.values())), "minutes": stages}
    content = {"schema": 1, "run": run, "rows": rows}
    (arguments.run / "results.json").write_text(json.dumps(content, indent=2) + "\n")
    radii = sorted({f"{row['norm']} eps {row['eps']}" for row in rows if row["threat"] != "none"})
    lines = [f"# {arguments.run.name}", "", f"{', '.join(radii)}, seed {run['seed']}; {run['hardware']}.", ""]
    lines += [*table(rows, published), "", "| stage | minutes |", "|---|---|"]
    lines += [f"| {stage} | {spent} |" for stage, spent in stages.items()]
    lines += [
        "",
        f"Commit {run['commit']}{' with local changes' if run['dirty'] else ''}; last command `{run['command']}`.",
    ]
    (arguments.run / "report.md").write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
