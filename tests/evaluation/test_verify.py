import json
import re

import pytest
import torch

from maep_lightning.evaluation import evaluate
from maep_lightning.evaluation.ledger import Ledger, Status
from maep_lightning.evaluation.sources import Sources
from maep_lightning.evaluation.verify import recheck

pytestmark = pytest.mark.usefixtures("_no_figure")


@pytest.fixture
def run(linear, tmp_path):
    case = linear.build(24)
    evaluate(*case, linear.plan(8), tmp_path / "run", progress=False, sanity=0)
    return tmp_path / "run", case


def broken_unit(folder, rung="whitebox"):
    ledger = Ledger(folder / "ledger")
    units = [ledger.read(rung, "apgd-ce", chunk) for chunk in range(3)]
    return ledger, next(unit for unit in units if unit is not None and (unit.status == Status.BROKEN).any())


@pytest.mark.parametrize("batch_size", [1, 7, 64])
def test_recheck__a_sound_run_has_no_fault(run, batch_size):
    folder, case = run
    found = recheck(folder, *case, batch_size=batch_size)
    assert found.faults == []
    ledger = Ledger(folder / "ledger")
    stored = [ledger.read(*path.parts[-3:-1], int(path.stem)) for path in ledger.root.rglob("*.safetensors")]
    assert found.files == len(stored)
    assert found.images == sum(len(unit.adversarial) for unit in stored)
    assert found.clean == 2 * 24


@pytest.mark.faults
@pytest.mark.parametrize(
    ("tamper", "message"),
    [
        (lambda images: images[0].sub_(0.2).clamp_(0, 1), "farther than eps"),
        (lambda images: images[0, 1, 2, 3].sub_(0.05), "farther than eps"),
        (lambda images: images[0, 0, 0].fill_(float("nan")), "is not finite"),
        (lambda images: images[0, 0, 0].fill_(1.5), r"leaves \[0, 1\]"),
        ("clean", "classified correctly"),
    ],
)
def test_recheck__flipped_pixel_with_a_valid_digest_is_named(run, tamper, message):
    """The forger recomputes the digest, so that only judging the image anew gives it away."""
    folder, case = run
    ledger, unit = broken_unit(folder)
    index = int(unit.indices[unit.status == Status.BROKEN][0])
    if tamper == "clean":
        unit.adversarial[0] = case[2][index]
    else:
        tamper(unit.adversarial)
    ledger.write(unit)
    faults = recheck(folder, *case).faults
    assert any(re.search(rf"{unit.path}.* sample {index} .*{message}", fault) for fault in faults)


def test_recheck__a_stochastic_model_is_held_to_the_same_draws_by_another_batch_size(linear, tmp_path):
    class Noisy(torch.nn.Module):
        def forward(self, images):
            return images + 0.01 * torch.randn_like(images)

    classifier, _, images, labels = linear.build(24)
    case = (classifier, Noisy().eval(), images, labels)
    evaluate(*case, linear.plan(8, version="rand"), tmp_path, progress=False, sanity=0)
    found = recheck(tmp_path, *case, batch_size=3)
    assert found.faults == []
    assert found.notes == []


@pytest.mark.faults
def test_recheck__one_flipped_bit_is_named(run):
    folder, case = run
    ledger, unit = broken_unit(folder)
    path = ledger.root / unit.path
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    (fault, *_) = recheck(folder, *case).faults
    assert str(path) in fault
    assert "edited" in fault


@pytest.mark.faults
def test_recheck__truncated_and_foreign_and_missing_files_are_named(run):
    folder, case = run
    ledger, unit = broken_unit(folder)
    path = ledger.root / unit.path
    content = path.read_bytes()
    path.write_bytes(content[:-8])
    assert any("damaged" in fault for fault in recheck(folder, *case).faults)
    path.unlink()
    assert any(f"{path} is missing" in fault for fault in recheck(folder, *case).faults)
    path.write_bytes(content)
    extra = path.with_name("000077.safetensors")
    extra.write_bytes(content)
    assert recheck(folder, *case).faults == [
        f"{extra} belongs to no part of the plan, or follows from no file before it."
    ]


@pytest.mark.faults
@pytest.mark.parametrize("rung", ["none", "blind", "whitebox"])
def test_recheck__edited_status_is_named(run, rung):
    folder, case = run
    ledger = Ledger(folder / "ledger")
    attack = {"none": "clean", "blind": "replay", "whitebox": "apgd-ce"}[rung]
    units = [ledger.read(rung, attack, chunk) for chunk in range(3)]
    bad = (Status.BROKEN, Status.CLEAN_WRONG)
    unit = next(unit for unit in units if any((unit.status == status).any() for status in bad))
    wrong = (unit.status == bad[0]) | (unit.status == bad[1])
    unit.status[wrong] = int(Status.ROBUST)
    # A careful forger makes the file consistent in itself.
    labels = case[3]
    unit.prediction[wrong] = labels[unit.indices[wrong]]
    unit.margin[wrong] = 1.0
    object.__setattr__(unit, "adversarial", unit.adversarial[:0])
    ledger.write(unit)
    assert any(rung in fault for fault in recheck(folder, *case).faults)


@pytest.mark.faults
def test_recheck__foreign_networks_and_data_are_named(run, linear):
    folder, (classifier, purifier, images, labels) = run
    other = linear.Linear(seed=9).eval()
    assert recheck(folder, other, purifier, images, labels).faults == ["classifier_weights: not what was evaluated."]
    assert "purifier_architecture: not what was evaluated." in recheck(folder, classifier, None, images, labels).faults
    moved = images.clone()
    moved[3, 0, 0, 0] += 1e-3
    assert recheck(folder, classifier, purifier, moved, labels).faults == ["images: not what was evaluated."]


@pytest.mark.faults
def test_recheck__results_and_plan_must_agree_with_the_ledger(run):
    folder, case = run
    path = folder / "results.json"
    content = json.loads(path.read_text())
    content["rows"][-1]["acc_robust"] = 0.9
    path.write_text(json.dumps(content))
    (fault,) = recheck(folder, *case).faults
    assert "acc_robust of worst is 0.9" in fault
    plan = folder / "plan.json"
    plan.write_text(plan.read_text().replace('"2/255"', '"4/255"'))
    (fault,) = recheck(folder, *case).faults
    assert "edited" in fault


def test_recheck__folder_without_an_evaluation(linear, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"plan\.json is missing"):
        recheck(tmp_path, *linear.build(4))


def test_sources__round_trip(tmp_path):
    assert Sources.read(tmp_path) == Sources()
    sources = Sources(classifier="c.safetensors", dataset="digits", num_classes=10)
    sources.write(tmp_path)
    assert Sources.read(tmp_path) == sources
