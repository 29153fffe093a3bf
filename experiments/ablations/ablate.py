"""Runs the cells of ablation tables one after the other in one process, and collects what they found.

usage: python experiments/ablations/ablate.py [TABLE ...] [--scale digits|cpu] [--seeds N] [--runs FOLDER]

A cell is a chain of stages and a judgement. Each stage is one `lightning fit` command in a folder named after a hash of
that command, so cells that begin alike share their stages, a finished one is not run again, and a killed run goes on.
"""

import argparse
import json
import logging
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import yaml
from cells import Cell, Stage, cells_of, chain, command, digest
from judging import Judge
from summary import summarise

HERE = Path(__file__).parent


class Job(NamedTuple):
    """One cell with one seed."""

    names: dict[str, Any]
    stages: list[Stage]
    judged: dict[str, Any]
    file: Path


def jobs(tables: list[str], scale: dict[str, Any], seeds: int, runs: Path, victim: dict[str, str]) -> Iterator[Job]:
    """Every cell of every table with every seed."""
    for table in tables:
        cells: dict[tuple[str, str], Cell] = cells_of(yaml.safe_load((HERE / f"{table}.yaml").read_text()))
        for (row, column), cell in cells.items():
            for seed in range(seeds):
                stages = chain(cell, scale, seed, runs, victim)
                judged = {**scale["judge"], **(cell.get("judge") or {})}
                file = runs / "cells" / digest([stages[-1].words, judged]) / "results.json"
                yield Job({"table": table, "row": row, "column": column, "seed": seed}, stages, judged, file)


def estimate(stages: list[Stage], judgements: int, scale: dict[str, Any]) -> float:
    """Seconds of one core that are left: by what stages of the name took here so far or, before any, by what the scale states."""
    total: float = judgements * scale["seconds"]["judge"]
    for stage in (stage for stage in stages if stage.seconds is None):
        noted = stage.runs.glob(f"stages/{stage.name}-*/done.json")
        taken = [json.loads(path.read_text())["seconds"] for path in noted]
        total += sum(taken) / len(taken) if taken else scale["seconds"][stage.name]
    return total


def main() -> None:
    known = sorted(path.stem for path in HERE.glob("*.yaml"))
    scales = sorted(path.stem for path in (HERE / "scale").glob("*.yaml"))
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tables", nargs="*", metavar="TABLE", help=f"some of {', '.join(known)}; all if none is named")
    parser.add_argument("--scale", default="digits", choices=scales)
    parser.add_argument("--seeds", type=int, default=3, help="trainings of each cell")
    parser.add_argument("--runs", type=Path, help="where stages and cells are kept; runs/ablations-SCALE if not given")
    parser.add_argument("--results", type=Path, default=HERE / "results", help="where tables and plots go")
    parser.add_argument("--classifier", help="file of the frozen classifier; one is trained if not given")
    parser.add_argument("--classifier-name", help="what network that file holds, if it does not say it")
    arguments = parser.parse_args()
    if unknown := set(arguments.tables) - set(known):
        parser.error(f"there is no table {', '.join(sorted(unknown))}; known are {', '.join(known)}")
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module="lightning.pytorch")
    runs = arguments.runs or Path(f"runs/ablations-{arguments.scale}")
    scale = yaml.safe_load((HERE / "scale" / f"{arguments.scale}.yaml").read_text())

    trained = Stage("classifier", command("classifier", scale, {}, 0), runs)
    victim = {"classifier": arguments.classifier or str(trained.weights)}
    if arguments.classifier_name:
        victim["classifier_name"] = arguments.classifier_name
    work = list(jobs(arguments.tables or known, scale, arguments.seeds, runs, victim))
    missing = [stage for job in work for stage in job.stages if stage.seconds is None]
    if not arguments.classifier and trained.seconds is None:
        missing.insert(0, trained)
    missing = list(dict.fromkeys(missing))
    open_ = {job.file for job in work if not job.file.exists()}
    minutes = estimate(missing, len(open_), scale) / 60
    print(
        f"[ablations] {len(work)} cells: {len(missing)} stages to train and {len(open_)} purifiers to judge, about"
        f" {minutes:.0f} minutes on one core",
        flush=True,
    )
    if trained in missing:
        trained.run()
    judge = Judge(victim, scale["data"], runs)
    for number, job in enumerate(work, start=1):
        if job.file.exists():
            continue
        print(f"[ablations] {number}/{len(work)} {' / '.join(str(name) for name in job.names.values())}", flush=True)
        for stage in job.stages:
            if stage.seconds is None:
                stage.run()
        judge.write(job.file, job.stages[-1].weights, job.judged, sum(stage.seconds or 0 for stage in job.stages))
    # Of the tables that were run before, too.
    done = [job for job in jobs(known, scale, arguments.seeds, runs, victim) if job.file.exists()]
    summarise(arguments.scale, [(job.names, job.file) for job in done], HERE, arguments.results)


if __name__ == "__main__":
    main()
