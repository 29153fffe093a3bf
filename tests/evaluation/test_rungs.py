import pytest
import torch
from torch import nn

from maep_lightning.attacks.simple import SIMPLE, simple_attack
from maep_lightning.evaluation import Plan, evaluate
from maep_lightning.evaluation.binding import bind
from maep_lightning.evaluation.ledger import Ledger, Status
from maep_lightning.evaluation.plan import PlanChangedError
from maep_lightning.evaluation.rungs import Rung, of_kinds
from maep_lightning.evaluation.threats import TITLES
from maep_lightning.evaluation.verify import recheck

pytestmark = pytest.mark.usefixtures("_no_figure")
LADDER = ("none", "noise", "transfer", "blind", "blind_worst", "square", "bpda", "whitebox")


class Rounding(nn.Module):
    """Its gradient is zero everywhere."""

    def forward(self, images):
        return (images * 20).round() / 20


@pytest.fixture(scope="module")
def climbed(linear, tmp_path_factory):
    folder = tmp_path_factory.mktemp("ladder")
    classifier, purifier, images, labels = linear.build(24)
    surrogate = linear.Linear(seed=7).eval()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("maep_lightning.evaluation.report.write.draw", lambda *args: None)
        plan = linear.plan(8, threats=LADDER)
        results = evaluate(
            classifier, purifier, images, labels, plan, folder, surrogate=surrogate, progress=False, sanity=0
        )
    return results, folder, (classifier, purifier, images, labels), surrogate


def test_ladder__each_threat_has_a_row_and_worst_is_per_sample(climbed):
    results = climbed[0]
    defended = [row["threat"] for row in results.rows if row["purifier"] is not None]
    assert defended == [*LADDER, "worst"]
    assert results.complete
    right = torch.stack([results.outcomes[name].status == Status.ROBUST for name in LADDER])
    assert torch.equal(results.outcomes["worst"].status == Status.ROBUST, right.all(dim=0))
    titles = {row["threat"]: row["attack"] for row in results.rows}
    assert "FGSM, BIM, MI-FGSM" in titles["blind_worst"]
    assert titles["bpda"].startswith("BPDA-identity apgd-ce")
    assert titles["worst"].startswith("worst of noise, transfer")


@pytest.mark.oracle
def test_ladder__no_rung_beats_the_closed_form_and_the_white_box_reaches_it(climbed, linear):
    results, _, (classifier, _, images, labels), _ = climbed
    robust = linear.closed_form(classifier, images, labels, mirrored=True)
    for name in LADDER[1:]:
        assert (results.outcomes[name].status[robust] == Status.ROBUST).all(), name
    assert torch.equal(results.outcomes["whitebox"].status == Status.ROBUST, robust)


@pytest.mark.oracle
def test_blind_worst__is_the_worst_of_attacks_made_on_the_bare_classifier(climbed):
    results, _, (classifier, purifier, images, labels), _ = climbed
    with torch.no_grad():
        wrong = classifier(purifier(images)).argmax(1) != labels
    deterministic = [name for name, recipe in SIMPLE.items() if not recipe.random_start]
    for name in deterministic:
        attacked = simple_attack(classifier, images, labels, name, 2 / 255)
        with torch.no_grad():
            wrong |= classifier(purifier(attacked)).argmax(1) != labels
    counted = results.outcomes["blind_worst"].status != Status.ROBUST
    assert (counted | ~wrong).all()
    assert counted.sum() >= wrong.sum()


def test_ladder__every_stored_image_can_be_verified(climbed):
    _, folder, case, surrogate = climbed
    found = recheck(folder, *case, surrogate=surrogate)
    assert found.faults == []
    stored = Ledger(folder / "ledger")
    rungs = {path.parts[-3] for path in stored.root.rglob("*.safetensors")}
    assert set(LADDER) <= rungs
    assert recheck(folder, *case).faults[0].startswith("surrogate_weights")


def test_bpda__breaks_a_purifier_that_has_no_gradient(linear, tmp_path):
    classifier, _, images, _ = linear.build(24)
    purifier = Rounding().eval()
    with torch.no_grad():
        labels = classifier(purifier(images)).argmax(1)
    plan = linear.plan(8, eps="8/255", threats=("none", "bpda"))
    results = evaluate(classifier, purifier, images, labels, plan, tmp_path, progress=False, sanity=0)
    assert results.complete
    through = nn.Sequential(purifier, classifier)
    attacked = simple_attack(through, images, labels, "bim", 8 / 255)
    with torch.no_grad():
        assert (through(attacked).argmax(1) == labels).all()
    assert results.row("bpda")["acc_robust"] < 1


def test_noise__finds_what_any_corner_breaks(linear, tmp_path):
    """Labels that hang by a thread: half of all corners break each, so that 100 draws break all."""
    classifier, purifier, images, _ = linear.build(8)
    with torch.no_grad():
        logits = classifier(purifier(images))
        labels = logits.argmax(1)
        second = logits.topk(2).indices[:, 1]
        weight = (classifier.weight[labels] - classifier.weight[second]).flip(-1)
        gap = (logits.gather(1, labels[:, None]) - logits.gather(1, second[:, None])).squeeze(1) - 1e-3
        images = images - weight * (gap / weight.flatten(1).square().sum(1)).view(-1, 1, 1, 1)
    images = images.clamp(0, 1)
    plan = linear.plan(8, threats=("none", "noise"))
    results = evaluate(classifier, purifier, images, labels, plan, tmp_path, progress=False, sanity=0)
    clean = results.row("none")["acc_robust"]
    assert clean > 0.5
    assert results.row("noise")["acc_robust"] == 0


def test_transfer__needs_a_surrogate(linear, tmp_path):
    with pytest.raises(ValueError, match="surrogate"):
        evaluate(*linear.build(8), linear.plan(8, threats=("none", "transfer")), tmp_path, progress=False, sanity=0)
    assert not (tmp_path / "plan.json").exists()


def test_plan__l1_has_no_simple_attacks():
    with pytest.raises(ValueError, match="blind_worst"):
        Plan(eps="1", norm="L1", threats=("none", "blind_worst"))


NAMED = ("none", "blind:fgsm", "blind:pgd", "blind:di-mi-fgsm", "blind:apgd-ce+square", "whitebox:apgd-ce+apgd-t")


@pytest.fixture(scope="module")
def named(linear, tmp_path_factory):
    folder = tmp_path_factory.mktemp("named")
    case = linear.build(24)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("maep_lightning.evaluation.report.write.draw", lambda *args: None)
        plan = linear.plan(8, threats=NAMED)
        results = evaluate(*case, plan, folder / "run", cache_dir=folder / "cache", progress=False, sanity=0)
    return results, folder, case


def test_named_attacks__each_has_a_row_under_its_threat_model(named):
    results = named[0]
    rows = [(row["threat"], row["attack"]) for row in results.rows if row["purifier"] is not None]
    assert rows == [
        ("none", "none"),
        ("blind", "FGSM"),
        ("blind", "PGD-40 x 5"),
        ("blind", "DI-MI-FGSM"),
        ("blind", "apgd-ce (6 steps) + square (5 queries)"),
        ("whitebox", "apgd-ce (6 steps) + apgd-t (6 steps)"),
        ("worst", f"worst of {', '.join(NAMED[1:])}"),
    ]
    assert results.complete
    assert results.row("blind:fgsm")["attack"] == "FGSM"


@pytest.mark.oracle
def test_named_attacks__blind_ones_count_the_attacked_images_as_they_come(named):
    results, _, (classifier, purifier, images, labels) = named
    with torch.no_grad():
        attacked = simple_attack(classifier, images, labels, "fgsm", 2 / 255)
        right = classifier(purifier(attacked)).argmax(1) == labels
    assert torch.equal(results.outcomes["blind:fgsm"].status == Status.ROBUST, right)


@pytest.mark.oracle
def test_named_attacks__apgd_through_the_whole_reaches_the_closed_form(named, linear):
    results, _, (classifier, _, images, labels) = named
    robust = linear.closed_form(classifier, images, labels, mirrored=True)
    assert torch.equal(results.outcomes["whitebox:apgd-ce+apgd-t"].status == Status.ROBUST, robust)


def test_named_attacks__every_stored_image_can_be_verified(named):
    _, folder, case = named
    assert recheck(folder / "run", *case).faults == []
    assert not list((folder / "run").rglob("*:*"))


def test_named_attacks__are_made_once_for_every_purifier(named, linear, monkeypatch, tmp_path):
    _, folder, (classifier, _, images, labels) = named
    monkeypatch.setattr("maep_lightning.evaluation.rungs.simple_attack", None)
    monkeypatch.setattr("maep_lightning.evaluation.rungs.run_component", None)
    plan = linear.plan(8, threats=("none", *(name for name in NAMED if name.startswith("blind"))))
    case = (classifier, nn.Identity().eval(), images, labels)
    assert evaluate(*case, plan, tmp_path, cache_dir=folder / "cache", progress=False, sanity=0).complete


def test_named_attacks__one_that_came_later_leaves_the_fingerprints_of_the_others(linear, tmp_path):
    """A run from before `di-mi-fgsm` was known has to stay readable."""
    plan = linear.plan(8, threats=("none", "blind:mi-fgsm", "blind:di-mi-fgsm", "blind_worst"))
    context = {rung.name: rung.context for rung in bind(*linear.build(8), plan, tmp_path, None, None).rungs}
    assert context["blind:mi-fgsm"]["simple"]["mi-fgsm"] == [10, 0.1, 1.0, False]
    assert context["blind:di-mi-fgsm"]["di-mi-fgsm"] == [10, 0.1, 1.0, False, 0.5]
    for earlier in ("blind:mi-fgsm", "blind_worst"):
        assert "di-mi-fgsm" not in str({**context[earlier], "threat": None})


def test_evaluate__goes_on_with_further_threats_in_the_same_folder(linear, tmp_path, monkeypatch):
    case = linear.build(16)
    first = evaluate(*case, linear.plan(8, threats=("none", "bpda")), tmp_path, progress=False, sanity=0)
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "ledger").rglob("*.safetensors")}
    wider = linear.plan(8, threats=("none", "blind:bim", "bpda"))
    second = evaluate(*case, wider, tmp_path, progress=False, sanity=0)
    assert {path: path.stat().st_mtime_ns for path in before} == before
    assert second.row("bpda") == first.row("bpda")
    assert second.row("blind:bim")["complete"]
    assert recheck(tmp_path, *case).faults == []
    with pytest.raises(PlanChangedError, match="threats"):
        evaluate(*case, linear.plan(8, threats=("none", "bpda")), tmp_path, progress=False, sanity=0)


def test_evaluate__the_order_of_threats_makes_no_other_evaluation(linear, tmp_path, monkeypatch):
    case, threats = linear.build(16), ("none", "blind:bim", "blind:fgsm", "bpda")
    first = evaluate(*case, linear.plan(8, threats=threats), tmp_path, progress=False, sanity=0)
    monkeypatch.setattr("maep_lightning.evaluation.engine._Engine._make", None)
    second = evaluate(*case, linear.plan(8, threats=threats[::-1]), tmp_path, progress=False, sanity=0)
    assert second.ledger_hash == first.ledger_hash
    assert recheck(tmp_path, *case).faults == []


@pytest.mark.parametrize(
    ("threat", "message"),
    [
        ("blind:fgms", "Did you mean fgsm"),
        ("blnd:fgsm", "Did you mean blind"),
        ("bpda:fgsm", "blind and whitebox only"),
        ("blind:", "no attack ''"),
    ],
)
def test_plan__mistyped_threats_are_answered_with_the_nearest(threat, message):
    with pytest.raises(ValueError, match=message):
        Plan(eps="8/255", threats=("none", threat))


@pytest.mark.parametrize("threat", ["blind:fgsm+fgsm", "whitebox:apgd-ce+fgsm+apgd-t+fgsm"])
def test_plan__attacks_named_twice_are_refused(threat):
    """The second pass would have the file of the first, and what that broke would count as robust."""
    with pytest.raises(ValueError, match=r"fgsm\+.*: fgsm named twice; name each attack once"):
        Plan(eps="8/255", threats=("none", threat))


def test_rung__attacks_of_one_name_are_refused():
    with pytest.raises(ValueError, match=r"bpda: attacks must have different names, not square, fab-t, square\."):
        Rung("bpda", ("square", "fab-t", "square"), None, None, {}, None)


@pytest.mark.parametrize("attack", TITLES)
def test_plan__l1_has_no_named_simple_attack(attack):
    with pytest.raises(ValueError, match=f"blind:{attack}"):
        Plan(eps="1", norm="L1", threats=("none", f"blind:{attack}"))


def test_named_attacks__that_need_more_classes_are_refused(linear, tmp_path):
    classifier = linear.Linear(classes=3).eval()
    _, purifier, images, _ = linear.build(8)
    labels = torch.zeros(8, dtype=torch.int64)
    plan = linear.plan(8, threats=("none", "blind:apgd-t"))
    with pytest.raises(ValueError, match="apgd-t needs 4 classes"):
        evaluate(classifier, purifier, images, labels, plan, tmp_path, progress=False, sanity=0)


def test_of_kinds__orders_rungs_by_their_threat_model_and_leaves_out_the_others():
    names = ["undefended-whitebox", "none", "noise", "blind:fgsm", "blind", "whitebox:apgd-ce", "square", "worst"]
    assert of_kinds(names) == ["whitebox:apgd-ce", "square", "blind", "blind:fgsm", "noise"]
    assert of_kinds(names, ("blind", "whitebox")) == ["blind", "blind:fgsm", "whitebox:apgd-ce"]
