"""Runs the cells of ablation tables one after the other in one process, and collects what they found.

usage: python experiments/ablations/ablate.py [TABLE ...] [--scale digits|cpu] [--seeds N] [--runs FOLDER]

A cell is a chain of trainings and a judgement. Each training is one `lightning fit` command in a folder named after a
hash of that command, so cells that begin alike share it, a finished one is not run again, and a killed one goes on.
"""

import argparse
import logging
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import yaml
from cells import RUNS, Stage, cells_of, chain, check, claimed, command, digest, merged
from judging import Judge
from summary import summarise

HERE = Path(__file__).parent
TABLES = HERE / "tables"


class Job(NamedTuple):
    """One cell with one seed."""

    row: str
    column: str
    seed: int
    stages: list[Stage]
    judged: dict[str, Any]
    file: Path


def read_tables(names: list[str]) -> dict[str, dict[str, Any]]:
    """The content of the named tables.

    Raises:
        ValueError: If one does not exist, or names an option that does not exist.
    """
    known = sorted(path.stem for path in TABLES.glob("*.yaml"))
    if unknown := set(names) - set(known):
        raise ValueError(f"There is no table {', '.join(sorted(unknown))}; known are {', '.join(known)}.")
    tables = {name: yaml.safe_load((TABLES / f"{name}.yaml").read_text()) for name in names or known}
    for name, table in tables.items():
        check(name, table)
    return tables


def jobs(table: dict[str, Any], scale: dict[str, Any], seeds: int, runs: Path, victim: dict[str, str]) -> Iterator[Job]:
    """Every cell of a table with every seed."""
    for (row, column), cell in cells_of(table).items():
        judged = merged({"judge": scale["judge"]}, {"judge": cell.get("judge") or {}})["judge"]
        assert judged is not None
        for seed in range(seeds):
            stages = chain(cell, scale, seed, runs, victim)
            file = runs / "cells" / digest([stages[-1].words, judged]) / "results.json"
            yield Job(row, column, seed, stages, judged, file)


def run(work: list[Job], judge: Judge, name: str) -> None:
    """Do what is not done yet."""
    missing = [job for job in work if not job.file.exists()]
    print(f"[ablations] {name}: {len(work)} cells, {len(missing)} of them to do", flush=True)
    for number, job in enumerate(missing, start=1):
        print(f"[ablations] {name} {number}/{len(missing)}: {job.row} {job.column} seed {job.seed}", flush=True)
        for stage in job.stages:
            stage.run()
        trained = sum(stage.seconds or 0 for stage in job.stages)
        with claimed(job.file.parent):
            if not job.file.exists():
                judge.write(job.file, job.stages[-1].weights, job.judged, job.seed, trained)


def main(words: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tables", nargs="*", metavar="TABLE", help="names of files in tables/; all if none is named")
    parser.add_argument(
        "--scale", default="digits", choices=sorted(path.stem for path in (HERE / "scale").glob("*.yaml"))
    )
    parser.add_argument("--seeds", type=int, default=3, help="trainings of each cell")
    parser.add_argument(
        "--runs", type=Path, help="where trainings and cells are kept; runs/ablations-SCALE if not given"
    )
    parser.add_argument(
        "--results", type=Path, help="where tables and plots go; results/SCALE of the study if not given"
    )
    parser.add_argument("--classifier", help="file of the frozen classifier; one is trained if not given")
    parser.add_argument("--classifier-name", help="what network that file holds, if it does not say it")
    arguments = parser.parse_args(words)
    try:
        tables = read_tables(arguments.tables)
    except ValueError as error:
        parser.error(str(error))
    runs = arguments.runs or Path(f"runs/ablations-{arguments.scale}")
    scale = yaml.safe_load((HERE / "scale" / f"{arguments.scale}.yaml").read_text())

    trained = Stage("classifier", command("classifier", scale, {}, 0), runs)
    victim = {"classifier": arguments.classifier or f"{RUNS}/{trained.place}/weights.safetensors"}
    if arguments.classifier_name:
        victim["classifier_name"] = arguments.classifier_name
    if not arguments.classifier:
        trained.run()
    judge = Judge({key: value.replace(RUNS, str(runs)) for key, value in victim.items()}, scale["data"], runs)
    for name, table in tables.items():
        work = list(jobs(table, scale, arguments.seeds, runs, victim))
        run(work, judge, name)
        found = [(job.row, job.column, job.seed, job.file) for job in work]
        summarise(name, table, found, arguments.results or HERE / "results" / arguments.scale, arguments.scale)


if __name__ == "__main__":
    # Said anew at each of hundreds of short trainings.
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module="lightning")
    main()
