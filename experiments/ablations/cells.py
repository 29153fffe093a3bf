"""From a table of options to commands: the stages of each cell, and where their files lie."""

import hashlib
import json
import shlex
import shutil
import time
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

STAGES = ("pretrain", "finetune", "lora", "whitebox")
Cell = dict[str, dict[str, Any] | None]


@dataclass(frozen=True)
class Stage:
    """One command of training; `words` say everything but where its files go."""

    name: str
    words: tuple[str, ...]
    runs: Path

    @property
    def folder(self) -> Path:
        return self.runs / "stages" / f"{self.name}-{digest(self.words)}"

    @property
    def weights(self) -> Path:
        return self.folder / "weights.safetensors"

    @property
    def seconds(self) -> float | None:
        """Seconds of one core that it took from its last start; None if it is not finished."""
        noted = self.folder / "done.json"
        return json.loads(noted.read_text())["seconds"] if noted.exists() else None

    def run(self) -> None:
        from maep_lightning.cli import main

        started, checkpoints = time.process_time(), self.folder / "checkpoints"
        words = [*self.words, "--trainer.default_root_dir", str(self.folder)]
        main([*words, "--ckpt_path", "last"] if checkpoints.exists() else words)
        shutil.rmtree(checkpoints, ignore_errors=True)
        done = {"command": shlex.join(["lightning", *words]), "seconds": round(time.process_time() - started, 1)}
        (self.folder / "done.json").write_text(json.dumps(done, indent=2) + "\n")


def digest(value: Any) -> str:
    """A name for a folder that changes with the value."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:12]


def merged(*cells: Cell | None) -> Cell:
    """Later cells win, option by option; a stage that is null is left out."""
    result: Cell = {}
    for cell in cells:
        for stage, options in (cell or {}).items():
            result[stage] = None if options is None else {**(result.get(stage) or {}), **options}
    return result


def cells_of(table: dict[str, Any]) -> dict[tuple[str, str], Cell]:
    """The cells of a table by row and column; a table without columns has one, without a name."""
    rows, columns = table["rows"], table.get("columns", {"": {}})
    return {(r, c): merged(table["base"], rows[r], columns[c]) for r, c in product(rows, columns)}


def command(name: str, scale: dict[str, Any], options: dict[str, Any], seed: int) -> tuple[str, ...]:
    """The words of `lightning fit`; the option `longer` multiplies the epochs that the scale gives the stage."""
    settings = scale["stages"][name]
    options = {**settings.get("options", {}), "data.init_args.seed": seed, **options}
    options["trainer.max_epochs"] = max(1, round(settings["epochs"] * options.pop("longer", 1)))
    words = ["fit", "--config", settings["config"], "--config", scale["overlay"], "--seed_everything", str(seed)]
    for key, value in options.items():
        path = key if key.startswith(("trainer.", "data.")) else f"model.init_args.{key}"
        words += [f"--{path}", value if isinstance(value, str) else json.dumps(value)]
    return tuple(words)


def chain(cell: Cell, scale: dict[str, Any], seed: int, runs: Path, victim: dict[str, str]) -> list[Stage]:
    """The stages that train the purifier of a cell, each on the weights of the one before.

    Args:
        cell: Options by stage, `network` for the shape, `judge` for the judgement.
        scale: Configuration, epochs and options of each stage.
        seed: Of the training; the classifier is the same for all.
        runs: Where the stages' files go.
        victim: The options of a task that name the frozen classifier.
    """
    stages: list[Stage] = []
    for name in STAGES:
        options = cell.get(name)
        if options is None:
            continue
        start: dict[str, Any] = {"weights": str(stages[-1].weights)} if stages else dict(cell.get("network") or {})
        if name != "pretrain":
            start = {"weights": None, **victim, **start}
        stages.append(Stage(name, command(name, scale, {**start, **options}, seed), runs))
    return stages
