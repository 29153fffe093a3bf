"""From a table of options to commands: the stages of each cell, and where their files lie."""

import fcntl
import hashlib
import json
import shlex
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields, is_dataclass
from difflib import get_close_matches
from inspect import signature
from itertools import product
from pathlib import Path
from typing import Any, get_args, get_type_hints

from maep_lightning.models.mae import MAEConfig
from maep_lightning.tasks import AdversarialFinetuning, ClassifierTraining, MAEPretraining, PurifierFinetuning

TASKS = {
    "classifier": ClassifierTraining,
    "pretrain": MAEPretraining,
    "finetune": PurifierFinetuning,
    "lora": PurifierFinetuning,
    "whitebox": AdversarialFinetuning,
}
STAGES = tuple(name for name in TASKS if name != "classifier")
JUDGED = ("n", "eps", "blind", "whitebox", "mask_ratio", "masks", "aggregate", "passes")
RUNS = "{runs}"
"""Stands for the folder of the runs, so that names of stages do not depend on where it is."""
Options = dict[str, Any]
Cell = dict[str, Options | None]


@dataclass(frozen=True)
class Stage:
    """One command of training.

    Attributes:
        name: Of the task, a key of `TASKS`.
        words: All of the command but where its files go.
        runs: The folder of the runs.
    """

    name: str
    words: tuple[str, ...]
    runs: Path

    @property
    def place(self) -> str:
        """Its folder below `runs`, named after the words."""
        return f"stages/{self.name}-{digest(self.words)}"

    @property
    def weights(self) -> Path:
        """What it leaves."""
        return self.runs / self.place / "weights.safetensors"

    @property
    def seconds(self) -> float | None:
        """Seconds of one core that it took since its last start; None if it is not finished."""
        noted = self.runs / self.place / "done.json"
        return json.loads(noted.read_text())["seconds"] if noted.exists() else None

    def run(self) -> None:
        """Train if that is not done, from the last checkpoint if there is one.

        Raises:
            SystemExit: If the training was stopped before its end.
        """
        folder = self.runs / self.place
        with claimed(folder):
            if self.seconds is None:
                self._train(folder)

    def _train(self, folder: Path) -> None:
        from maep_lightning.cli import main

        started = time.process_time()
        words = [word.replace(RUNS, str(self.runs)) for word in self.words]
        words += ["--trainer.default_root_dir", str(folder)]
        checkpoints = folder / "checkpoints"
        main([*words, "--ckpt_path", "last"] if checkpoints.exists() else words)
        if not self.weights.exists():
            raise SystemExit(
                f"[ablations] {self.place} was stopped; the same command goes on from its last checkpoint."
            )
        shutil.rmtree(checkpoints, ignore_errors=True)
        done = {"command": shlex.join(["lightning", *words]), "seconds": round(time.process_time() - started, 1)}
        (folder / "done.json").write_text(json.dumps(done, indent=2) + "\n")


@contextmanager
def claimed(folder: Path) -> Iterator[None]:
    """Inside, no other process that asks for it works in the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def digest(value: Any) -> str:
    """A name for a folder that changes with the value, a JSON type."""
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


def check(name: str, table: dict[str, Any]) -> None:
    """Refuse a table that names a stage or an option that does not exist.

    Args:
        name: Of the table.
        table: Its content.

    Raises:
        ValueError: If so, with the nearest name.
    """
    for place, part in {
        "base": {"": table["base"]},
        "rows": table["rows"],
        "columns": table.get("columns", {}),
    }.items():
        for title, cell in part.items():
            where = f"{name}.yaml, {place} {title}".strip()
            for stage, options in (cell or {}).items():
                _known(where, "part", stage, ("network", *STAGES, "judge"))
                for option in options or {}:
                    _check_option(f"{where}, {stage}", stage, option)


def _check_option(where: str, stage: str, option: str) -> None:
    if stage in ("network", "judge"):
        network = ("like", *(field.name for field in fields(MAEConfig)))
        return _known(where, "option", option, network if stage == "network" else JUDGED)
    if option.startswith(("trainer.", "data.")):
        return None
    task = TASKS[stage].__init__
    first, _, rest = option.partition(".")
    _known(where, "option", first, ("longer", *(name for name in signature(task).parameters if name != "self")))
    if rest:
        hint = get_type_hints(task)[first]
        settings = next((kind for kind in (hint, *get_args(hint)) if is_dataclass(kind)), None)
        _known(
            where, "option", option, [f"{first}.{field.name}" for field in fields(settings)] if settings else [first]
        )
    return None


def _known(where: str, kind: str, name: str, names: Any) -> None:
    if name not in names:
        nearest = get_close_matches(name, names, n=1)
        hint = f"did you mean {nearest[0]}?" if nearest else f"known are {', '.join(names)}."
        raise ValueError(f"{where}: unknown {kind} {name!r}; {hint}")


def command(name: str, scale: dict[str, Any], options: Options, seed: int) -> tuple[str, ...]:
    """The words of `lightning fit`; the option `longer` multiplies the epochs that the scale gives the stage."""
    settings = scale["stages"][name]
    options = {**settings.get("options", {}), "data.init_args.seed": seed, **options}
    options["trainer.max_epochs"] = max(1, round(settings["epochs"] * options.pop("longer", 1)))
    words = ["fit", "--config", f"{scale['configs']}/{name}.yaml", "--config", scale["overlay"]]
    words += ["--seed_everything", str(seed)]
    for key, value in {**{f"data.init_args.{k}": v for k, v in scale["data"].items()}, **options}.items():
        path = key if key.startswith(("trainer.", "data.")) else f"model.init_args.{key}"
        words += [f"--{path}", value if isinstance(value, str) else json.dumps(value)]
    return tuple(words)


def chain(cell: Cell, scale: dict[str, Any], seed: int, runs: Path, victim: dict[str, str]) -> list[Stage]:
    """The stages that train the purifier of a cell, each on the weights of the one before.

    Args:
        cell: Options by stage, `network` for the architecture, `judge` for the judgement.
        scale: Configurations, epochs and options of each stage.
        seed: Of the training; the classifier is the same for all.
        runs: Where the stages' files go.
        victim: The options of a task that name the frozen classifier.
    """
    stages: list[Stage] = []
    for name in STAGES:
        options = cell.get(name)
        if options is None:
            continue
        start = {"weights": f"{RUNS}/{stages[-1].place}/weights.safetensors"} if stages else _network(cell, scale)
        if name != "pretrain":
            start = {"weights": None, **victim, **start}
        stages.append(Stage(name, command(name, scale, {**start, **options}, seed), runs))
    return stages


def _network(cell: Cell, scale: dict[str, Any]) -> Options:
    changed = dict(cell.get("network") or {})
    network = dict(scale["networks"][changed.pop("like", "purifier")])
    return {"shape": network.pop("shape"), "overrides": {**network, **changed}}
