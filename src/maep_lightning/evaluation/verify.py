"""`maep verify`: a finished evaluation checked anew, from its files and nothing that the run claims of itself."""

import json
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from maep_lightning.attacks.target import Target, device_of, isolated_rng
from maep_lightning.evaluation import fingerprint
from maep_lightning.evaluation.inputs import pixels
from maep_lightning.evaluation.judging import TOLERANCE, Verdict, distance, judge
from maep_lightning.evaluation.ladder import ladder
from maep_lightning.evaluation.ledger import Ledger, LedgerError, Status, Unit, unit_path
from maep_lightning.evaluation.plan import SCHEMA, Manifest, Plan, PlanChangedError
from maep_lightning.evaluation.results import tally
from maep_lightning.evaluation.rungs import Batch, Rung, judge_seed, unit_seed
from maep_lightning.evaluation.summary import alive, kept, standing
from maep_lightning.models.defended import stages

NEAR_TIE = 1e-4
"""Margins closer to zero than this may change sign with the batch size or the hardware: reported, not failed.

Of a stochastic system each draw may, so that its margin, a share of draws, may move by two of them.
"""


@dataclass
class Recheck:
    """What a check found.

    Attributes:
        faults: One sentence for each thing that is not as it must be; none for a sound run.
        notes: What is worth knowing and no fault.
        files: Ledger files read.
        images: Adversarial images judged anew.
        clean: Clean images judged anew.
        near_ties: Adversarial images whose margin is within 1e-4 of zero.
    """

    faults: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    files: int = 0
    images: int = 0
    clean: int = 0
    near_ties: int = 0


def recheck(
    run_dir: str | Path,
    classifier: nn.Module,
    purifier: nn.Module | None,
    images: Tensor,
    labels: Tensor,
    *,
    surrogate: nn.Module | None = None,
    batch_size: int = 50,
) -> Recheck:
    """Judge every stored adversarial image again and follow the ledger from file to file.

    Checked are the fingerprints of networks and data; of each file its digest, its place, and that it follows from
    those before it; of each adversarial image that it is finite, in [0, 1], within eps and misclassified by an eager
    float32 forward pass; of each clean and replayed image its recorded status; and that `results.json` says what the
    ledger says. A sample that is recorded as robust cannot be checked but by attacking it again.

    Args:
        run_dir: Folder of the run.
        classifier: The classifier that was evaluated.
        purifier: The purifier; None without one.
        images: The evaluated images in their order, `(N, C, H, W)`; more than were evaluated may be given.
        labels: `(N,)`.
        surrogate: The surrogate classifier of the transfer rung, if that was climbed.
        batch_size: Images judged together, chosen freely: the verdicts do not depend on it.

    Returns:
        What was found.

    Raises:
        FileNotFoundError: If there is no evaluation in the folder.
    """
    run_dir, found = Path(run_dir), Recheck()
    try:
        manifest = Manifest.read(run_dir)
        if manifest.values.get("schema") != SCHEMA:
            was = manifest.values.get("version_maep-lightning")
            raise PlanChangedError(f"{run_dir} was written by another version of the package ({was}): use that one.")
        plan = plan_of(manifest)
    except (PlanChangedError, KeyError, TypeError) as error:
        found.faults.append(str(error))
        return found
    n = int(manifest.values["n"])
    images, labels = images[:n].cpu(), labels[:n].long().cpu()
    _identify(manifest, plan, classifier, purifier, surrogate, images, labels, found)
    if found.faults:
        return found
    device = device_of(classifier, purifier)
    bare = Target(classifier, draws=manifest.values["classifier_draws"], device=device)
    defended = None
    if purifier is not None:
        defended = Target(*stages(purifier, classifier), draws=manifest.values["whole_draws"], device=device)
    if max(target.draws for target in (bare, defended) if target) > 1 and bare.device.type != manifest.values["device"]:
        found.faults.append(
            f"the system is stochastic, and its draws on {manifest.values['device']} cannot be repeated on"
            f" {bare.device.type}: check it where it was evaluated."
        )
        return found
    ledger = Ledger(run_dir / "ledger")
    rungs = ladder(plan, manifest, bare, defended, ledger, None if surrogate is None else Target(surrogate))
    expected: set[Path] = set()
    for number, start in enumerate(range(0, n, plan.chunk_size)):
        indices = torch.arange(start, min(start + plan.chunk_size, n))
        data = fingerprint.of_tensors({"images": images[indices], "labels": labels[indices]})
        chunk = _Chunk(number, indices, pixels(images[indices], bare.device), labels[indices].to(bare.device), data)
        for rung in rungs:
            try:
                expected |= _follow(rung, chunk, plan, ledger, batch_size, found)
            except LedgerError as error:
                found.faults.append(str(error))
    for path in sorted(ledger.root.rglob("*")):
        if path.is_file() and not path.name.startswith(".") and path.relative_to(ledger.root) not in expected:
            _fault(found, f"{path} belongs to no part of the plan, or follows from no file before it.")
    if not found.faults:
        _compare(run_dir, tally(plan, manifest, rungs, ledger), found)
    return found


def plan_of(manifest: Manifest) -> Plan:
    """The plan that a manifest was bound from."""
    values = {item.name: manifest.values[item.name] for item in fields(Plan)}
    return Plan(**values)


@dataclass(frozen=True)
class _Chunk:
    number: int
    indices: Tensor
    images: Tensor
    labels: Tensor
    data: str


def _identify(
    manifest: Manifest,
    plan: Plan,
    classifier: nn.Module,
    purifier: nn.Module | None,
    surrogate: nn.Module | None,
    images: Tensor,
    labels: Tensor,
    found: Recheck,
) -> None:
    """Whether these are the networks and the data that were evaluated, field by field."""
    is_ = {
        "classifier_weights": fingerprint.of_weights(classifier),
        "classifier_architecture": fingerprint.of_architecture(classifier),
        "purifier_weights": fingerprint.of_weights(purifier),
        "purifier_architecture": fingerprint.of_architecture(purifier),
        "n": len(labels),
        "images": fingerprint.of_tensors({"images": images}),
        "labels": fingerprint.of_tensors({"labels": labels}),
    }
    if "surrogate_weights" in manifest.values:
        is_ |= {
            "surrogate_weights": fingerprint.of_weights(surrogate),
            "surrogate_architecture": fingerprint.of_architecture(surrogate),
        }
    if "purifier_chunk" in manifest.values:
        is_["purifier_chunk"] = getattr(purifier, "chunk", None)
    for name, value in is_.items():
        if manifest.values.get(name) != value:
            _fault(found, f"{name}: not what was evaluated.")
    before = {name.removeprefix("version_"): value for name, value in manifest.values.items()}
    now = fingerprint.of_packages()
    for name, network in (("classifier", classifier), ("purifier", purifier), ("surrogate", surrogate)):
        before |= manifest.values.get(f"{name}_libraries", {})
        now |= fingerprint.of_libraries(network)
    for name, value in now.items():
        if (was := before.get(name)) != value:
            found.notes.append(f"{name} was {was}, is {value}")


def _follow(rung: Rung, chunk: _Chunk, plan: Plan, ledger: Ledger, batch_size: int, found: Recheck) -> set[Path]:
    """Check the files of one chunk on one rung; the paths that there must be."""
    clean = None
    if rung.baseline is not None:
        clean = ledger.read(rung.baseline, "clean", chunk.number)
        if clean is None:
            return set()  # named where the clean rung is followed
    units: list[Unit | None] = []
    paths = set()
    for attack in rung.attacks:
        rows = alive(rung, clean, standing(rung, clean, units, chunk.indices)).nonzero().squeeze(1)
        if len(rows) == 0:
            continue
        path = ledger.root / unit_path(rung.name, attack, chunk.number)
        paths.add(path.relative_to(ledger.root))
        unit = ledger.read(rung.name, attack, chunk.number)
        units.append(unit)
        if unit is None:
            _fault(found, f"{path} is missing.")
            break
        found.files += 1
        stated = {
            "context": rung.context_hash,
            "data": chunk.data,
            "seed": unit_seed(plan.seed, rung.name, attack, chunk.number),
        }
        for name, value in stated.items():
            if getattr(unit, name) != value:
                _fault(found, f"{path} is of another evaluation: its {name} differs.")
        if not torch.equal(unit.indices, chunk.indices[rows]):
            _fault(found, f"{path} does not follow from the files before it.")
            break
        _consistent(rung, unit, chunk.labels.cpu()[rows], path, found)
        where = rows.to(chunk.images.device)
        batch = Batch(chunk.number, unit.indices, chunk.images[where], chunk.labels[where], unit.seed)
        _attacked(rung, unit, batch, plan, batch_size, path, found)
        if attack in ("clean", "replay") and unit.error is None:
            _replayed(rung, attack, unit, batch, batch_size, path, found)
    return paths


def _consistent(rung: Rung, unit: Unit, labels: Tensor, path: Path, found: Recheck) -> None:
    """Whether statuses, predictions and margins of a file agree."""
    if unit.error is not None:
        found.notes.append(f"{path} ended in an exception: {unit.error}")
        return
    robust, wrong = unit.status == Status.ROBUST, (unit.status == Status.BROKEN) | (unit.status == Status.CLEAN_WRONG)
    right = unit.prediction == labels
    bad = (robust & (~right | (unit.margin < 0))) | (wrong & (right | (unit.margin > 0)))
    if bool(bad.any()):
        _fault(found, f"{path}: sample {int(unit.indices[bad][0])} has a status that its prediction contradicts.")
    counted = unit.status != Status.ERROR
    if unit.draws != rung.judge.draws or bool(((unit.right < 0) | (unit.right > unit.draws))[counted].any()):
        _fault(found, f"{path}: its counts of right draws are none of {rung.judge.draws} draws.")
    if unit.draws == 1 and bool((unit.right != right.int())[counted].any()):
        _fault(found, f"{path}: its counts of right draws contradict its predictions.")
    if not torch.equal(unit.stored, kept(rung, unit.status, unit.right)):
        _fault(found, f"{path}: the samples that it stores images of are not those that its statuses ask for.")
    if len(unit.adversarial) != int(unit.stored.sum()):
        _fault(found, f"{path}: {len(unit.adversarial)} images for {int(unit.stored.sum())} samples.")


def _verdict(rung: Rung, images: Tensor, batch: Batch, batch_size: int) -> Verdict:
    """The judge's verdict on images `(k, C, H, W)` of a batch; by the same draws where it is stochastic.

    Draws depend on the shape of the batch, which is then that of the evaluation.
    """
    size = len(batch) if rung.judge.draws > 1 else batch_size
    parts = []
    for start in range(0, len(batch), size):
        rows = slice(start, start + size)
        with isolated_rng(judge_seed(batch.seed), images.device):
            parts.append(judge(rung.judge, images[rows], batch.labels[rows]))
    return Verdict(*(torch.cat([getattr(part, item.name) for part in parts]) for item in fields(Verdict)))


def _near_tie(verdict: Verdict, draws: int) -> Tensor:
    return verdict.margin.abs() < (NEAR_TIE if draws == 1 else 2 / draws + NEAR_TIE)


def _attacked(rung: Rung, unit: Unit, batch: Batch, plan: Plan, batch_size: int, path: Path, found: Recheck) -> None:
    """Whether each stored image is one that the threat model allows, and breaks the judge as recorded."""
    norm, eps = plan.norm, float(plan.eps)
    rows = unit.stored.nonzero().squeeze(1)[: len(unit.adversarial)]
    if len(rows) == 0:
        return
    where = rows.to(batch.images.device)
    attacked = unit.adversarial[: len(rows)].to(batch.images.device)
    if unit.draws == 1:
        verdict = _verdict(rung, attacked, batch.part(rows), batch_size)
    else:
        # Images that are not stored take no part in the draws of the others: any will do in their place.
        whole = _verdict(rung, batch.images.index_copy(0, where, attacked), batch, batch_size)
        verdict = Verdict(*(getattr(whole, item.name)[where] for item in fields(Verdict)))
    flat, tie = attacked.flatten(1), _near_tie(verdict, unit.draws)
    broken = (unit.status[rows] == Status.BROKEN).to(where.device)
    moved = (verdict.right.cpu() - unit.right[rows]).abs().to(where.device)
    problems = {
        "is not finite": ~(flat.isfinite().all(dim=1) & verdict.finite),
        "leaves [0, 1]": ((flat < 0) | (flat > 1)).any(dim=1),
        f"is farther than eps {eps:.6g} ({norm})": distance(attacked, batch.images[where], norm) > eps + TOLERANCE,
        "is classified correctly": broken & (verdict.prediction == batch.labels[where]) & ~tie,
        "is right in another number of draws than recorded": moved > (1 if unit.draws > 1 else unit.draws),
    }
    for problem, mask in problems.items():
        for row in mask.nonzero().squeeze(1).tolist():
            _fault(found, f"{path}: the adversarial image of sample {int(unit.indices[rows[row]])} {problem}.")
    found.images += len(rows)
    found.near_ties += int((broken & tie).sum())


def _replayed(rung: Rung, attack: str, unit: Unit, batch: Batch, batch_size: int, path: Path, found: Recheck) -> None:
    """Whether clean and replayed images, which can be made again without an attack, fare as recorded."""
    verdict = _verdict(rung, rung.generate(batch, attack).images, batch, batch_size)
    wrong = (verdict.prediction != batch.labels).cpu()
    recorded = (unit.status == Status.BROKEN) | (unit.status == Status.CLEAN_WRONG)
    known = (unit.status != Status.ERROR) & verdict.finite.cpu() & ~_near_tie(verdict, unit.draws).cpu()
    for row in ((wrong != recorded) & known).nonzero().squeeze(1).tolist():
        number = int(unit.indices[row])
        _fault(found, f"{path}: sample {number} is recorded as {Status(int(unit.status[row])).name}, but is not.")
    found.clean += len(batch) if attack == "clean" else 0


def _compare(run_dir: Path, counted: list[dict[str, Any]], found: Recheck) -> None:
    """Whether `results.json` says what the ledger says; a withheld headline may say less."""
    path = run_dir / "results.json"
    try:
        content = json.loads(path.read_text())
        rows = {_system(row): row for row in content["rows"]}
    except FileNotFoundError:
        found.notes.append(f"{path} is missing: the run was not finished")
        return
    except (ValueError, KeyError, TypeError) as error:
        found.faults.append(f"{path} is damaged ({error}).")
        return
    for own in counted:
        row = rows.pop(_system(own), None)
        if row is None:
            found.faults.append(f"{path} has no row for the threat {own['threat']}.")
            continue
        for name in ("n", "norm", "eps", "acc_undefended_clean", "acc_clean", "acc_robust", "complete", "readings"):
            withheld = name in ("acc_robust", "complete") and row.get("acc_robust") is None and not row.get("complete")
            if row.get(name) != own.get(name) and not withheld:
                found.faults.append(
                    f"{path}: {name} of {own['threat']} is {row.get(name)}, the ledger says {own.get(name)}."
                )
    found.faults += [f"{path}: the row {threat} ({attack}) is not in the ledger." for threat, attack, _ in rows]


def _system(row: dict[str, Any]) -> tuple[str, str, bool]:
    """What tells rows of one run apart."""
    return row["threat"], row["attack"], row["purifier"] is None


def _fault(found: Recheck, text: str) -> None:
    if text not in found.faults:
        found.faults.append(text)
