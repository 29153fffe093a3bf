"""From the YAML of a study to its cells: what is measured, and where it lies."""

import hashlib
import json
import re
import reprlib
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from difflib import get_close_matches
from functools import cache
from itertools import product
from pathlib import Path
from types import NoneType
from typing import Any, get_args

import yaml
from torch import nn

from maep_lightning.data.source import ImageSource
from maep_lightning.evaluation import Plan
from maep_lightning.models import baselines
from maep_lightning.models.registry import load_purifier
from maep_lightning.models.trained import training_data

BUDGETS = ("apgd_steps", "fab_steps", "square_queries", "targets")
KNOWING = {"whitebox", "bpda", "eot", "fixed_coins", "square"}
"""Threat models whose attacker meets the purifier; without one of them there is no headline."""

NO_PURIFIER = "none"
"""What reports call the purifier of the control `resize`, which uses none, whatever purifier was named."""


@dataclass(frozen=True)
class Trained:
    """A purifier of the study.

    Attributes:
        spec: A text of `load_purifier`.
        trained_on: What it was trained on, in the study's words; what the purifier itself says if None.
    """

    spec: str
    trained_on: str | None = None

    @property
    def origin(self) -> str:
        """What reports say that it was trained on."""
        if self.trained_on is not None:
            return self.trained_on
        try:
            return _origin(self.spec)
        except (FileNotFoundError, ValueError):  # what is on file of it is reported all the same
            return "not stated"


@cache
def _origin(spec: str) -> str:
    """The data that its file names; nothing for baselines."""
    purifier = load_purifier(spec)
    parts = purifier.children() if isinstance(purifier, nn.Sequential) else [purifier]
    if all(type(part).__module__ == baselines.__name__ for part in parts):
        return "nothing"
    return training_data(purifier) or "not stated"


@dataclass(frozen=True)
class Frozen:
    """A classifier of the study.

    Attributes:
        source: A text or file of `load_classifier`.
        name: The network, where the file does not say it.
        num_classes: K, likewise.
    """

    source: str
    name: str | None = None
    num_classes: int | None = None


@dataclass(frozen=True)
class Cell:
    """One evaluation: a purifier under a policy before a classifier, on some images, in one ball.

    Attributes:
        dataset: Its name in the study; so are `classifier` and `purifier`.
        policy: A text of `apply_policy`.
        norm: Of the ball.
        eps: Its radius, as it is written.
        n: Images: the first so many, which of class folders are balanced over the classes.
        chunk_size: As in `Plan`.
        seed: As in `Plan`.
        budget: Budgets of attacks that are not the published ones.
        threats: As in `Plan`.
        optional: Whether the cell is skipped where its files are missing.
    """

    dataset: str
    classifier: str
    purifier: str
    policy: str
    norm: str
    eps: str
    n: int
    chunk_size: int
    seed: int
    budget: tuple[tuple[str, int], ...] = ()
    threats: tuple[str, ...] = field(default=(), compare=False)
    optional: bool = field(default=False, compare=False)

    @property
    def plan(self) -> Plan:
        """What the evaluator is asked for."""
        return Plan(
            eps=self.eps,  # type: ignore[arg-type]  # a text is what Plan reads
            norm=self.norm,  # type: ignore[arg-type]
            threats=self.threats,
            n=self.n,
            chunk_size=self.chunk_size,
            seed=self.seed,
            **dict(self.budget),  # type: ignore[arg-type]
        )

    @property
    def title(self) -> str:
        """What it is, for people."""
        where = f"{self.dataset} ({self.n} images), {self.norm} {self.eps}"
        purifier = NO_PURIFIER if self.control else self.purifier
        return f"{purifier} @ {self.policy} before {self.classifier} on {where}"

    @property
    def control(self) -> bool:
        """Whether it shows what resizing alone does."""
        return self.policy.partition(":")[0] == "resize"

    @property
    def folder(self) -> str:
        """Its folder; further threats go into the same one."""
        same = {name: value for name, value in asdict(self).items() if name not in ("threats", "optional")}
        digest = hashlib.sha256(json.dumps(same, sort_keys=True).encode()).hexdigest()[:8]
        names = (self.dataset, self.classifier, f"{self.purifier}-{self.policy}", f"{self.norm}-{self.eps}")
        words = "_".join(re.sub(r"[^\w.-]+", "-", name) for name in names)
        return f"{words}_{self.n}-{digest}"

    @property
    def knowing(self) -> bool:
        """Whether an attacker is measured who meets the purifier."""
        return bool(self.plan.kinds & KNOWING)

    @property
    def blind(self) -> tuple[str, ...]:
        """The threats whose attacker does not meet it."""
        return tuple(text for text, threat in self.plan.named.items() if threat.kind not in {*KNOWING, "none"})


@dataclass(frozen=True)
class Study:
    """What a YAML file asks for.

    Attributes:
        name: Name of the file.
        purifiers: By their names in the study; so are `classifiers` and `datasets`.
        datasets: Options of `ImageSource`.
        cells: In the order of the file, each once.
    """

    name: str
    purifiers: dict[str, Trained]
    classifiers: dict[str, Frozen]
    datasets: dict[str, dict[str, Any]]
    cells: tuple[Cell, ...]


AXES = ("dataset", "classifier", "purifier", "policy", "ball")
OPTIONS = (*AXES, "n", "threats", "chunk_size", "budget", "optional")
TOP = ("seed", "purifiers", "classifiers", "datasets", "grids")


def read_study(path: Path, only: Iterable[str] = ()) -> Study:
    """Read a study.

    Args:
        path: The YAML file; README.md beside this module says what stands in it.
        only: Names of grids whose cells to take, with what those grids ask of them; all if there is none.

    Raises:
        ValueError: If it is no YAML, or a name, an option or a value is unknown or missing; the message says where.
    """
    if path.is_dir():
        raise ValueError(f"{path} is a folder: give the YAML file of a study.")
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f"{path.name}, line {mark.line + 1}" if mark else path.name
        raise ValueError(f"{where}: this is no YAML: {getattr(error, 'problem', error)}.") from None
    if not isinstance(content, dict):
        raise ValueError(f"{path} is no study: it needs {', '.join(TOP)}.")
    _known(content, TOP, f"{path.name}: there is no entry")
    if missing := [name for name in TOP if name != "seed" and not content.get(name)]:
        raise ValueError(f"{path.name} lacks {', '.join(missing)}.")
    for name in TOP[1:]:
        _mapping(content[name], f"{path.name}: {name}")
    seed = _whole(content.get("seed", 0), f"{path.name}: seed")
    purifiers = {name: _entry(Trained, value, f"purifier {name}") for name, value in content["purifiers"].items()}
    classifiers = {name: _entry(Frozen, value, f"classifier {name}") for name, value in content["classifiers"].items()}
    datasets = {
        name: _typed(ImageSource, {"dataset": name} | _mapping(options or {}, f"data set {name}"), f"data set {name}")
        for name, options in content["datasets"].items()
    }
    names = {"purifier": purifiers, "classifier": classifiers, "dataset": datasets}
    grids: dict[str, dict[str, Any]] = content["grids"]
    _known(only, grids, f"{path.name}: there is no grid")
    cells: dict[Cell, Cell] = {}
    for title, grid in grids.items():
        if only and title not in only:
            continue
        for cell in _expand(grid, f"grid {title!r}", names, seed):
            same = cells.get(cell, cell)
            threats = tuple(dict.fromkeys((*same.threats, *cell.threats)))
            cells[cell] = replace(same, threats=threats, optional=same.optional and cell.optional)
    return Study(path.stem, purifiers, classifiers, datasets, tuple(cells.values()))


def _expand(grid: Mapping[str, Any], where: str, names: Mapping[str, Any], seed: int) -> list[Cell]:
    _known(_mapping(grid, where), OPTIONS, f"{where}: there is no option")
    if missing := [name for name in ("dataset", "classifier", "purifier", "ball", "n", "threats") if name not in grid]:
        raise ValueError(f"{where} lacks {', '.join(missing)}.")
    axes = {axis: _several(grid.get(axis, "native")) for axis in AXES}
    for axis, example in (("policy", "tile:32"), ("ball", "Linf 8/255")):
        if wrong := [value for value in axes[axis] if not isinstance(value, str)]:
            raise ValueError(f"{where}: {axis} must be text such as {example}, not {wrong[0]!r}.")
    for axis, known in names.items():
        _known(axes[axis], known, f"{where}: there is no {axis}")
    budget = _mapping(grid.get("budget", {}), f"{where}: budget")
    _known(budget, BUDGETS, f"{where}: there is no budget")
    numbers = {"n": grid["n"], "chunk_size": grid.get("chunk_size", 100)}
    for name, value in (numbers | budget).items():
        _whole(value, f"{where}: {name}")
    optional = grid.get("optional", False)
    if not isinstance(optional, bool):
        raise ValueError(f"{where}: optional must be true or false, not {optional!r}.")
    shared = numbers | {
        "seed": seed,
        "budget": tuple(sorted(budget.items())),
        "threats": ("none", *(threat for threat in _several(grid["threats"]) if threat != "none")),
        "optional": optional,
    }
    if wrong := [threat for threat in shared["threats"] if not isinstance(threat, str)]:
        raise ValueError(f"{where}: the threat {wrong[0]!r} is no text such as blind or, without a space, blind:fgsm.")
    if "transfer" in shared["threats"]:
        raise ValueError(
            f"{where}: transfer attacks a surrogate classifier, and a study has none; leave it out, or measure it by"
            " lightning test --config configs/cifar10/ladder.yaml."
        )
    cells = []
    for dataset, ball, purifier, policy, classifier in product(
        axes["dataset"], axes["ball"], axes["purifier"], axes["policy"], axes["classifier"]
    ):
        norm, _, eps = ball.partition(" ")
        cells.append(Cell(dataset, classifier, purifier, policy, norm, eps.strip(), **shared))
    try:
        for cell in cells:
            _ = cell.plan
    except (TypeError, ValueError) as error:
        raise ValueError(f"{where}: {error}") from None
    return cells


def _entry(kind: Any, value: Any, where: str) -> Any:
    """A purifier or a classifier, from its text alone or from its fields."""
    text = fields(kind)[0].name
    options = _mapping({text: value} if isinstance(value, str) else value, where)
    if options.get(text) is None:
        _known(options, [item.name for item in fields(kind)], f"{where}: there is no option")
        raise ValueError(f"{where} lacks {text}.")
    return kind(**_typed(kind, options, where))


WORDS: dict[Any, str] = {str: "text", int: "a whole number", float: "a number"}
"""What types are called that a value may have."""


def _typed(kind: Any, options: dict[str, Any], where: str) -> dict[str, Any]:
    """Refuse options that a dataclass does not have, and values that are not of its types."""
    _known(options, [item.name for item in fields(kind)], f"{where}: there is no option")
    for item in fields(kind):
        types = get_args(item.type) or (item.type,)
        if item.name not in options or any(part not in WORDS for part in types if part is not NoneType):
            continue  # choices among texts are checked where they are read
        value = options[item.name]
        if type(value) not in types and not (float in types and type(value) is int):
            raise ValueError(f"{where}: {item.name} must be {WORDS[types[0]]}, not {value!r}.")
    return options


def _whole(value: Any, what: str) -> int:
    """Refuse what is no whole number."""
    if type(value) is not int:
        raise ValueError(f"{what} must be a whole number, not {value!r}.")
    return value


def _mapping(value: Any, what: str) -> dict[str, Any]:
    """Refuse what is no mapping from texts."""
    if not isinstance(value, dict):
        raise ValueError(f"{what} must be names with values, such as `name: value`, not {reprlib.repr(value)}.")
    if wrong := [name for name in value if not isinstance(name, str)]:
        raise ValueError(f"{what}: the name {wrong[0]!r} must be text; put it into quotes.")
    return value


def _several(value: Any) -> tuple[Any, ...]:
    return tuple(value) if isinstance(value, list) else (value,)


def _known(names: Iterable[Any], known: Iterable[str], what: str) -> None:
    """Refuse names that are not known, with the nearest that is."""
    known = list(known)
    for name in names:
        if name not in known:
            close = get_close_matches(str(name), known, n=1)
            raise ValueError(
                f"{what} {name!r}; known: {', '.join(known)}.{f' Did you mean {close[0]}?' if close else ''}"
            )
