"""Measures a study of transfer: a purifier for every test set, policy, classifier, ball and attack of one YAML file.

usage: python -m experiments.transfer.run STUDY.yaml [--runs FOLDER] [--grid NAME ...] [--device NAME] [--preview]

A cell that is on file is not measured again, and a killed one goes on where it stopped. After every cell the reports
are written anew, from all cells of the study that are on file.
"""

import argparse
import re
import sys
import time
from collections.abc import Callable, Container, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import fields, replace
from functools import cache, partial
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

from experiments.transfer.matrix import NO_PURIFIER, Cell, Study, read_study
from experiments.transfer.measured import Measured
from experiments.transfer.tables import write_reports
from maep_lightning.data.registry import LabelledImages
from maep_lightning.data.source import ImageSource
from maep_lightning.evaluation import Subject, evaluate
from maep_lightning.evaluation.cost import estimate
from maep_lightning.evaluation.framing import check_framing
from maep_lightning.evaluation.ledger import LedgerError
from maep_lightning.evaluation.normalization import FURTHER, check_normalization
from maep_lightning.evaluation.on_file import is_about, recall
from maep_lightning.evaluation.plan import Manifest
from maep_lightning.evaluation.progress import clock
from maep_lightning.evaluation.provenance import describe_run
from maep_lightning.evaluation.sources import Sources
from maep_lightning.models.classifiers import load_classifier
from maep_lightning.models.policies import apply_policy
from maep_lightning.models.registry import load_purifier

CHECKED = 64
"""Images of a data set that a classifier is looked at with before it is attacked; more where they leave it open."""


OPTIONS = {
    "run_dir": "a folder below `--runs`",
    "classifier_name": "the classifier's `name`",
    "--data.init_args.download": "what every grid that is not `optional` does where files are missing",
}
"""What options of `lightning test`, which messages name, are called here; those of data sets keep their names."""


class Bench(NamedTuple):
    """What a cell needs."""

    classifier: nn.Module
    purifier: nn.Module
    images: torch.Tensor
    labels: torch.Tensor


class Materials:
    """The networks and images of a study, each loaded once.

    Args:
        study: The study.
        device: Where the networks go.
        fetched: Data sets that are downloaded where files are missing, if they can be.
    """

    def __init__(self, study: Study, device: torch.device, fetched: Container[str] = ()) -> None:
        self.study, self.device, self.fetched = study, device, fetched
        self.classifier, self.purifier, self.images = map(cache, (self._classifier, self._purifier, self._images))

    def bench(self, cell: Cell) -> Bench:
        """What a cell needs.

        Raises:
            FileNotFoundError: If a file is missing.
            ValueError: If a name is unknown, or a file is not what it should be.
        """
        purifier = self.purifier(cell.purifier, cell.policy)
        return Bench(self.classifier(cell.classifier), purifier, *self.images(cell.dataset, cell.n))

    def sources(self, cell: Cell) -> Sources:
        """Where they came from, for `maep verify`."""
        frozen, options = self.study.classifiers[cell.classifier], dict(self.study.datasets[cell.dataset])
        return Sources(
            classifier=frozen.source,
            classifier_name=frozen.name,
            num_classes=frozen.num_classes,
            purifier=self.study.purifiers[cell.purifier].spec,
            policy=cell.policy,
            dataset=options.pop("dataset"),
            root=options.pop("root", None),
            images=options | {"test_limit": cell.n},
        )

    def named(self, cell: Cell) -> Cell:
        """A cell as reports name it: the control `resize` by its size alone, since no purifier has a part in it."""
        if not cell.control:
            return cell
        policy = cell.policy
        with suppress(FileNotFoundError, ValueError):  # said where the cell is tried
            policy = f"resize:{self.purifier(cell.purifier, cell.policy).size}"
        return replace(cell, purifier=NO_PURIFIER, policy=policy)

    def subject(self, cell: Cell) -> Subject:
        """How reports call them."""
        named = self.named(cell)
        trained = "nothing" if cell.control else self.study.purifiers[cell.purifier].origin
        return Subject(
            dataset=cell.dataset,
            classifier=cell.classifier,
            purifier=named.purifier,
            policy=named.policy,
            class_names=self.source(cell.dataset).class_names,
            training_data=f"{trained} (purifier)",
        )

    def _classifier(self, name: str) -> nn.Module:
        frozen = self.study.classifiers[name]
        return load_classifier(frozen.source, frozen.name, frozen.num_classes).to(self.device)

    def _purifier(self, name: str, policy: str) -> nn.Module:
        purifier = load_purifier(self.study.purifiers[name].spec)
        return apply_policy(purifier, policy).eval().requires_grad_(False).to(self.device)

    def _images(self, name: str, n: int) -> LabelledImages:
        source = self.source(name)
        if name in self.fetched:
            try:
                source.load("test")
            except FileNotFoundError:
                place = source.root_path.absolute()
                say(f"{name} is not in {place}, and is fetched into it if it can be: {source.spec.how_to_get}")
                source.load("test", download=True)
        return source.test_images(n)

    def source(self, name: str) -> ImageSource:
        """Where the images of a data set come from.

        Raises:
            ValueError: If an option is not one of its.
        """
        try:
            return ImageSource(**self.study.datasets[name])
        except TypeError as error:
            raise ValueError(f"data set {name}: {error}.") from None


def say(text: str) -> None:
    print(f"[transfer] {text}", file=sys.stderr, flush=True)


@contextmanager
def about(cell: Cell) -> Iterator[None]:
    """Name the cell in what is wrong with it."""
    try:
        yield
    except (OSError, LedgerError, ValueError) as error:
        kind = next(kind for kind in (OSError, LedgerError, ValueError) if isinstance(error, kind))
        raise kind(f"{cell.title}: {in_study(reason(error))}") from None


def reason(error: Exception) -> str:
    """What an error says, in a line without its number."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror + (f": {error.filename}" if error.filename else "")
    return str(error)


def in_study(text: str) -> str:
    """A message with what options that it names are called in a study, where they are called otherwise."""
    said = [f"{name} is {ours}" for name, ours in OPTIONS.items() if re.search(rf"(?<![\w./]){name}\b", text)]
    asked = re.findall(rf"--data\.(?:init_args\.)?(?:{'|'.join(item.name for item in fields(ImageSource))})\b", text)
    said += [f"{option} is the data set's `{option.rpartition('.')[2]}`" for option in dict.fromkeys(asked)]
    return f"{text} In a study, {' and '.join(said)}." if said else text


def present(study: Study, materials: Materials) -> list[Cell]:
    """The cells whose files are all there; says which are not.

    Raises:
        ValueError: If a cell that is not optional lacks files, or one names something unknown.
    """
    ready, missing = [], {}
    for cell in study.cells:
        with about(cell):
            try:
                materials.bench(cell)
                ready.append(cell)
            except FileNotFoundError as error:
                if not cell.optional:
                    raise ValueError(reason(error)) from None
                missing.setdefault(f"{cell.dataset}: {in_study(reason(error))}", []).append(cell)
    for why, cells in missing.items():
        say(f"{len(cells)} cells skipped, {why} The same command fills them once the files are there.")
    return ready


def asked(study: Study, named: Callable[[Cell], Cell]) -> dict[Cell, tuple[str, ...]]:
    """The threats that a study asks for, by cells as reports name them."""
    threats: dict[Cell, tuple[str, ...]] = {}
    for cell in study.cells:
        threats[named(cell)] = tuple(dict.fromkeys((*threats.get(named(cell), ()), *cell.threats)))
    return threats


def joined(part: Study, study: Study, runs: Path, named: Callable[[Cell], Cell]) -> Study:
    """Some grids of a study, whose cells keep what is on file of them: of other grids, or no longer asked for.

    Cells that differ in a purifier which has no part in them are one: that which is on file, else the first.

    Args:
        part: The grids.
        study: The study.
        runs: As in `measure`.
        named: The cell as reports name it.
    """
    full, cells, homes = asked(study, named), {}, {}
    for cell in part.cells:
        name = named(cell)
        twins = [cell, *(other for other in study.cells if cell.control and named(other) == name)]
        begun = [other for other in twins if (runs / other.folder / "plan.json").exists()]
        home = begun[0] if begun else homes.setdefault(name, cell)
        with about(home):
            on_file = Manifest.read(runs / home.folder).values["threats"] if begun else []
        before = cells.get(home, cell)
        wanted = [threat for threat in full[name] if threat in (*before.threats, *cell.threats)]
        optional = before.optional and cell.optional
        cells[home] = replace(home, threats=tuple(dict.fromkeys((*on_file, *wanted))), optional=optional)
    return replace(part, cells=tuple(cells.values()))


def warn(cells: Iterable[Cell], materials: Materials) -> None:
    """Say once for each classifier and data set if the classifier does not get its images as it was trained to.

    Args:
        cells: What is going to be measured; of the same pair that with most images is looked at.
        materials: Theirs.
    """
    pairs = {(cell.classifier, cell.dataset): cell for cell in sorted(cells, key=lambda cell: cell.n)}
    for (classifier, dataset), cell in pairs.items():
        bench = materials.bench(cell)
        more = partial(_first, bench, FURTHER)
        found = check_normalization(bench.classifier, *_first(bench, CHECKED), more=more)
        framing = materials.source(dataset).framing
        for warning in (*found.warnings, *check_framing(bench.classifier, framing)):
            say(f"warning: {classifier} on {dataset}: {in_study(warning)}")


def _first(bench: Bench, n: int) -> tuple[Tensor, Tensor]:
    return bench.images[:n], bench.labels[:n]


def outdated(cells: Iterable[Cell], materials: Materials, runs: Path) -> list[Cell]:
    """The cells on file that are about other networks or images than the study names now; says how many.

    Args:
        cells: Some cells; those whose files are not there are not compared.
        materials: Theirs.
        runs: As in `measure`.
    """
    found = []
    for cell in cells:
        if (runs / cell.folder / "results.json").exists():
            with suppress(FileNotFoundError, ValueError):
                if not is_about(*materials.bench(cell), cell.plan, runs / cell.folder):
                    found.append(cell)
    if found:
        names = ", ".join(cell.title for cell in found[:3]) + (", ..." if found[3:] else "")
        say(f"{len(found)} cells on file are of other weights or images, and no part of the report: {names}")
    return found


def measure(study: Study, runs: Path, device: torch.device, part: Study | None = None, preview: bool = False) -> None:
    """Measure what is not on file yet, and report on all of the study that is.

    Args:
        study: The study.
        runs: Folder of its cells and reports; attacks on bare classifiers are kept beside it for all studies.
        device: Where to compute.
        part: Some grids of the study, if not all are to be measured now.
        preview: Whether to stop after the cost is known.

    Raises:
        ValueError: If something cannot be measured as it is asked for.
    """
    started, attacks = time.monotonic(), runs.parent / "attacks"
    needed = {cell.dataset for cell in (part or study).cells if not cell.optional}
    materials = Materials(study, device, fetched=needed)
    costs: dict[Cell, float] = {}
    planned: set[Path] = set()
    ready = present(joined(part or study, study, runs, materials.named), materials)
    for cell in ready:
        bench, folder = materials.bench(cell), runs / cell.folder
        with about(cell):
            if recall(*bench, cell.plan, folder, device) is None:
                options = {"cache_dir": attacks, "device": device, "planned": planned}
                costs[cell] = estimate(*bench, cell.plan, folder, **options).attacks
    full = asked(study, materials.named)
    for cell in costs:
        if further := [threat for threat in cell.threats if threat not in full[materials.named(cell)]]:
            say(f"{cell.title}: {', '.join(further)} was begun here before, so it is measured too, and not reported")
    warn(costs, materials)
    total = sum(costs.values())
    say(
        f"{len(ready)} cells, {len(ready) - len(costs)} of them on file; at most about {clock(total)} for the others if"
        " no image breaks; broken ones cost far less"
    )
    for cell, cost in sorted(costs.items(), key=lambda item: -item[1]) if preview else ():
        say(f"at most {clock(cost)}: {cell.title}")
    if preview:
        return
    old = outdated((cell for cell in study.cells if cell not in ready), materials, runs)
    study = replace(study, cells=tuple(cell for cell in study.cells if cell not in old))
    done, spent = 0.0, 0.0
    for number, (cell, cost) in enumerate(costs.items(), start=1):
        left = f"about {clock((total - done) * spent / done)} left" if done else "no estimate yet"
        say(f"{number} of {len(costs)}: {cell.title}; {clock(time.monotonic() - started)} gone, {left}")
        begun, folder = time.monotonic(), runs / cell.folder
        with about(cell):
            evaluate(
                *materials.bench(cell), cell.plan, folder, subject=materials.subject(cell),
                sources=materials.sources(cell), cache_dir=attacks, device=device, sanity=0,
            )  # fmt: skip
        done, spent = done + cost, spent + time.monotonic() - begun
        report(study, runs, materials.named)
    if not costs:
        report(study, runs, materials.named)


def report(study: Study, runs: Path, named: Callable[[Cell], Cell]) -> None:
    """Write the reports of all cells of a study that are on file.

    Args:
        study: The study.
        runs: As in `measure`.
        named: The cell as reports name it.
    """
    threats, found = asked(study, named), []
    for cell in study.cells:
        with about(cell):
            found.append(Measured.read(replace(named(cell), threats=threats[named(cell)]), runs / cell.folder))
    measured = [cell for cell in found if cell is not None]
    if not measured:
        say("nothing is on file, so there is no report")
        return
    seconds = sum(row["seconds"] for cell in measured for row in cell.rows if row["threat"] != "worst")
    write_reports(study, measured, describe_run(measured[0].cell.seed, seconds), runs)
    say(f"report: {runs / 'report.md'}")


def usable_device(name: str) -> torch.device:
    """The device of that name.

    Raises:
        ValueError: If torch knows no such device, or cannot use it here.
    """
    try:
        return torch.empty(0, device=name).device
    except (RuntimeError, AssertionError) as error:  # a torch without CUDA asserts
        reason = str(error).splitlines()[0]
        raise ValueError(
            f"--device {name} cannot be used here: {reason.rstrip('.')}. Give cpu, or leave it out."
        ) from None


def default_device() -> str:
    """An accelerator of whatever kind, if one can be used; else the CPU."""
    found = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    return "cpu" if found is None else found.type


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("study", type=Path)
    parser.add_argument("--runs", type=Path, help="folder of cells and reports; runs/transfer/STUDY if not given")
    parser.add_argument("--grid", action="append", default=[], help="only this grid of the study; may be repeated")
    parser.add_argument("--device", help="cpu, cuda, ...; an accelerator if there is one")
    parser.add_argument("--preview", action="store_true", help="print what it would cost, and stop")
    words = parser.parse_args()
    runs = words.runs or Path("runs/transfer") / words.study.stem
    try:
        device = usable_device(words.device or default_device())
        measure(read_study(words.study), runs, device, read_study(words.study, words.grid), words.preview)
    except (OSError, LedgerError, ValueError) as error:
        raise SystemExit(f"[transfer] {reason(error)}") from None


if __name__ == "__main__":
    main()
