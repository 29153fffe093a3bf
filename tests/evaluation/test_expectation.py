"""The rungs against stochastic purifiers, and what a verdict on one is."""

import json
from dataclasses import replace

import pytest
import torch
from torch import nn

from maep_lightning.attacks.autoattack import AutoAttackSettings
from maep_lightning.attacks.target import Target
from maep_lightning.evaluation import Plan, evaluate
from maep_lightning.evaluation.expectation import eot_attacks, expectation_rung
from maep_lightning.evaluation.judging import judge
from maep_lightning.evaluation.ladder import fixed
from maep_lightning.evaluation.ledger import Ledger, Status
from maep_lightning.evaluation.plan import PlanChangedError
from maep_lightning.evaluation.report.robustbench import reasons_against
from maep_lightning.evaluation.summary import Outcome
from maep_lightning.evaluation.verify import recheck
from maep_lightning.models.policies import apply_policy

pytestmark = pytest.mark.usefixtures("_no_figure")
THREATS = ("none", "blind", "blind_worst", "bpda", "eot", "fixed_coins")
BUDGET = {"eot_draws": 3, "eot_steps": 5, "judge_draws": 9, "targets": 1, "apgd_steps": 5}
READINGS = ("mean_draw", "majority", "any_of_m")


class Noisy(nn.Module):
    """A stochastic purifier: mirrored images with noise of its own for each call."""

    def __init__(self, size=0.08):
        super().__init__()
        self.size = size

    def forward(self, images):
        return images.flip(-1) + self.size * torch.randn(images.shape)

    def extra_repr(self):
        return f"size={self.size}"


def run(linear, folder, samples=16, purifier=None, **changes):
    classifier, _, images, labels = linear.build(samples)
    case = (classifier, (purifier or Noisy()).eval(), images, labels)
    options = {"progress": False, "sanity": 0} | {k: changes.pop(k) for k in ("sanity", "cache_dir") if k in changes}
    plan = linear.plan(8, **({"threats": THREATS, "eps": "4/255"} | BUDGET | changes))
    return evaluate(*case, plan, folder, **options), case


@pytest.fixture(scope="module")
def climbed(linear, tmp_path_factory):
    folder = tmp_path_factory.mktemp("eot")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("maep_lightning.evaluation.report.write.draw", lambda *args: None)
        results, case = run(linear, folder, sanity=8)
    return results, folder, case


@pytest.mark.oracle
def test_judge__is_the_majority_of_draws_and_a_tie_counts_against_the_label():
    class Coin(nn.Module):
        """Says what the test dictates, call by call."""

        def __init__(self, *calls):
            super().__init__()
            self.calls = list(calls)

        def forward(self, images):
            return nn.functional.one_hot(torch.tensor(self.calls.pop(0)), 3).float()

    labels = torch.tensor([0, 0, 1])
    calls = [[0, 0, 2], [1, 0, 1], [0, 1, 2], [1, 0, 0]]
    verdict = judge(Target(Coin(*calls).eval(), draws=4), torch.zeros(3, 3, 2, 2), labels)
    assert verdict.right.tolist() == [2, 3, 1]
    assert verdict.prediction.tolist() == [1, 0, 2]
    assert verdict.margin.tolist() == pytest.approx([0.0, 0.5, -0.25])


def test_readings__are_the_mean_the_majority_and_any_of_m():
    robust, broken = int(Status.ROBUST), int(Status.BROKEN)
    status = torch.tensor([robust, robust, broken, broken], dtype=torch.uint8)
    outcome = Outcome("eot", status, right=torch.tensor([8, 6, 2, 0], dtype=torch.int32), draws=8)
    assert outcome.readings == {"draws": 8, "mean_draw": 0.5, "majority": 0.5, "any_of_m": 0.25}
    assert Outcome("none", status).readings is None
    status[0] = int(Status.ERROR)
    assert outcome.readings is None


@pytest.mark.oracle
def test_eot__on_a_linear_system_with_noise_is_what_theory_says(linear, tmp_path):
    """The noise adds a normal variable to each margin: where the closed form is far from it, the majority is known."""
    size = 0.002
    changes = {"eps": "2/255", "judge_draws": 15, "eot_steps": 20, "apgd_steps": 20, "threats": ("none", "eot")}
    results, case = run(linear, tmp_path, samples=48, purifier=Noisy(size), **changes)
    classifier, _, images, labels = case
    weight = classifier.weight.detach().flip(-1).flatten(1)
    logits = images.flatten(1) @ weight.T + classifier.bias.detach()
    difference = weight[labels][:, None] - weight[None]
    margin = logits.gather(1, labels[:, None]) - logits - linear.EPS * difference.abs().sum(-1)
    spread = size * difference.norm(dim=-1)
    others = torch.ones_like(margin, dtype=torch.bool).scatter(1, labels[:, None], False)
    robust = ((margin > 4 * spread) | ~others).all(dim=1)
    broken = ((margin < -4 * spread) & others).any(dim=1)
    status = results.outcomes["eot"].status
    assert (status[robust] == Status.ROBUST).all()
    assert (status[broken] != Status.ROBUST).all()
    assert min(int(robust.sum()), int(broken.sum())) > 5


def test_ladder__each_rung_has_its_row_and_its_readings(climbed):
    results, folder, _ = climbed
    assert results.complete
    rows = {row["threat"]: row for row in results.rows if row["purifier"] is not None}
    assert list(rows) == [*THREATS, "worst"]
    for name in ("none", "blind", "blind_worst", "bpda", "eot"):
        readings = rows[name]["readings"]
        assert readings["draws"] == 9
        assert readings["majority"] == rows[name]["acc_robust"]
        assert readings["any_of_m"] <= min(readings["mean_draw"], readings["majority"])
    assert "readings" not in rows["fixed_coins"]
    assert "readings" not in results.row("none", defended=False)
    eot, clean = rows["eot"]["readings"], rows["none"]["readings"]
    assert eot["any_of_m"] < eot["mean_draw"] < clean["mean_draw"]
    assert json.loads((folder / "results.json").read_text())["rows"] == results.rows
    cells = " | ".join(f"{100 * eot[name]:.2f} %" for name in READINGS)
    assert f"| eot | {cells} |" in (folder / "report.md").read_text()
    assert "read three ways" in (folder / "report.html").read_text()
    assert "the purifier is stochastic" in reasons_against(results)


def test_ladder__worst_counts_by_majority_and_with_known_coins(climbed):
    outcomes = climbed[0].outcomes
    right = torch.stack([outcomes[name].status == Status.ROBUST for name in THREATS]).all(dim=0)
    assert torch.equal(outcomes["worst"].status == Status.ROBUST, right)


def test_ladder__titles_say_what_was_run(climbed):
    titles = {row["threat"]: row["attack"] for row in climbed[0].rows}
    assert titles["eot"] == (
        "reduced apgd-ce+apgd-dlr (APGD 5 steps, 3 draws, 1 targets) + reduced PGD-5 x EOT-3,"
        " judged by the majority of 9 fresh draws"
    )
    assert titles["fixed_coins"].startswith("reduced apgd-ce+apgd-t+fab-t+square")
    assert titles["fixed_coins"].endswith("coins fixed")
    assert titles["bpda"] == "BPDA-identity apgd-ce + apgd-dlr (5 steps, 3 draws)"
    assert AutoAttackSettings(eps="8/255", version="rand").title(10) == "AutoAttack rand"
    assert AutoAttackSettings(eps="8/255", version="rand", eot_draws=19).reduced
    assert not AutoAttackSettings(eps="8/255", eot_draws=19).reduced


@pytest.mark.parametrize("batch_size", [3, 64])
def test_ladder__every_stored_image_is_verified_by_the_same_draws(climbed, batch_size):
    _, folder, case = climbed
    found = recheck(folder, *case, batch_size=batch_size)
    assert found.faults == []
    assert found.images > 10


@pytest.mark.faults
@pytest.mark.parametrize("rung", ["eot", "blind_worst"])
def test_recheck__edited_counts_of_draws_are_named(linear, tmp_path, rung):
    _, case = run(linear, tmp_path, threats=("none", "blind_worst", "eot"))
    ledger = Ledger(tmp_path / "ledger")
    units = [ledger.read(*path.parts[-3:-1], int(path.stem)) for path in ledger.root.glob(f"{rung}/*/*")]
    middle = [(unit.right > 2) & (unit.right < 7) & unit.stored for unit in units]
    unit, rows = next((unit, rows) for unit, rows in zip(units, middle, strict=True) if bool(rows.any()))
    unit.right[rows.nonzero()[0]] -= 2
    ledger.write(unit)
    assert any("another number of draws" in fault for fault in recheck(tmp_path, *case).faults)


@pytest.mark.faults
def test_recheck__readings_must_agree_with_the_ledger(climbed):
    _, folder, case = climbed
    path = folder / "results.json"
    kept = path.read_text()
    content = json.loads(kept)
    next(row for row in content["rows"] if row["threat"] == "eot")["readings"]["mean_draw"] = 0.99
    path.write_text(json.dumps(content))
    (fault,) = recheck(folder, *case).faults
    path.write_text(kept)
    assert "readings of eot" in fault


def test_evaluate__same_ledger_whatever_the_order_of_chunks_and_after_a_stop(linear, tmp_path):
    class Backwards:
        rank, world_size = 0, 1

        def chunks(self, count):
            return reversed(range(count))

        def join(self):
            pass

    whole, case = run(linear, tmp_path / "a", threats=("none", "eot", "fixed_coins"))
    options = {"progress": False, "sanity": 0}
    other = evaluate(*case, whole.plan, tmp_path / "b", workers=Backwards(), **options)
    assert other.ledger_hash == whole.ledger_hash
    for path in list((tmp_path / "b" / "ledger" / "eot").rglob("*.safetensors"))[::2]:
        path.unlink()
    torch.manual_seed(99)
    assert evaluate(*case, whole.plan, tmp_path / "b", **options).ledger_hash == whole.ledger_hash


@pytest.mark.parametrize("change", [{"eot_draws": 4}, {"eot_steps": 6}, {"judge_draws": 11}, {"seed": 1}])
def test_plan__every_budget_changes_what_is_on_file(linear, tmp_path, change):
    for name, changes in (("a", {}), ("b", change)):
        run(linear, tmp_path / name, samples=8, threats=("none", "eot"), **changes)
    attack = "pgd" if "eot_steps" in change else "apgd-ce"
    first, second = (Ledger(tmp_path / name / "ledger").read("eot", attack, 0) for name in "ab")
    assert first.context != second.context
    assert first.right.tolist() != second.right.tolist() or not torch.equal(first.adversarial, second.adversarial)


@pytest.mark.parametrize("random", [True, False])
def test_evaluate__chunks_of_tiles_belong_to_what_was_evaluated_where_draws_follow_them(linear, tmp_path, random):
    def tiled(chunk):
        return apply_policy(nn.Sequential(Noisy(), Noisy()) if random else linear.Flip(), "tile:3", chunk)

    first, case = run(linear, tmp_path / "a", purifier=tiled(256), threats=("none",))
    other, changed = run(linear, tmp_path / "b", purifier=tiled(4), threats=("none",))
    assert (first.ledger_hash != other.ledger_hash) == random
    assert recheck(tmp_path / "a", *case).faults == []
    if random:
        assert first.outcomes["none"].right.tolist() != other.outcomes["none"].right.tolist()
        with pytest.raises(PlanChangedError, match="purifier_chunk: was 256, is 4"):
            run(linear, tmp_path / "a", purifier=tiled(4), threats=("none",))
        assert recheck(tmp_path / "a", *changed).faults == ["purifier_chunk: not what was evaluated."]
    else:
        again, _ = run(linear, tmp_path / "a", purifier=tiled(4), threats=("none",))
        assert again.ledger_hash == first.ledger_hash
        assert recheck(tmp_path / "a", *changed).faults == []


def test_eot__goes_on_as_long_as_any_draw_is_right(climbed):
    """A sample whose majority is broken can fall further, and the mean over draws says so."""
    ledger, went_on = Ledger(climbed[1] / "ledger"), 0
    for chunk in range(2):
        first, second = (ledger.read("eot", name, chunk) for name in ("apgd-ce", "apgd-dlr"))
        clean = ledger.read("none", "clean", chunk)
        lowest = torch.minimum(first.right, clean.right[first.indices - clean.indices[0]])
        assert torch.equal(second.indices, first.indices[lowest > 0])
        went_on += int((first.status[lowest > 0] == Status.BROKEN).sum())
    assert went_on > 0


@pytest.mark.parametrize("asked", ["eot", "fixed_coins"])
def test_ladder__deterministic_purifiers_have_no_such_rung(linear, tmp_path, asked):
    case = linear.build(8)
    with pytest.raises(ValueError, match=f"{asked} .* stochastic purifier, and this one is deterministic"):
        evaluate(*case, linear.plan(8, threats=("none", asked)), tmp_path, progress=False, sanity=0)
    assert not (tmp_path / "plan.json").exists()


class NanBackward(torch.autograd.Function):
    @staticmethod
    def forward(ctx, images):
        return images.clone()

    @staticmethod
    def backward(ctx, gradient):
        return gradient * torch.nan


@pytest.mark.faults
def test_eot__nan_gradients_are_never_robust(linear, tmp_path):
    class NanNoise(Noisy):
        def forward(self, images):
            return super().forward(NanBackward.apply(images))

    results, _ = run(linear, tmp_path, purifier=NanNoise(), threats=("none", "eot"))
    assert results.row("eot")["acc_robust"] is None
    assert results.outcomes["eot"].count(Status.ROBUST) == 0
    assert "readings" not in results.row("eot")


@pytest.mark.faults
def test_eot__out_of_memory_goes_on_with_smaller_batches(linear, tmp_path):
    class Small(Noisy):
        def forward(self, images):
            if images.requires_grad and len(images) > 3:
                raise torch.OutOfMemoryError("CUDA out of memory")
            return super().forward(images)

    results, case = run(linear, tmp_path, samples=8, purifier=Small(), threats=("none", "eot"))
    assert results.complete
    assert Ledger(tmp_path / "ledger").read("eot", "pgd", 0).notes["splits"] >= 3
    assert recheck(tmp_path, *case).faults == []


def test_fixed_coins__are_those_of_the_seed_and_the_same_for_every_image(linear, tmp_path):
    results, (classifier, purifier, images, labels) = run(linear, tmp_path, threats=("none", "fixed_coins"))
    bare, whole = Target(classifier), Target(purifier, classifier, draws=9)
    frozen, other = fixed(whole, results.plan, bare), fixed(whole, Plan(eps="1/255", seed=1), bare)
    with torch.no_grad():
        logits = frozen(images)
        assert torch.equal(frozen(images), logits)
        assert torch.allclose(frozen(images[[5, 2]]), logits[[5, 2]], atol=1e-4)
        assert not torch.allclose(whole(images), logits, atol=1e-2)
        assert not torch.allclose(other(images), logits, atol=1e-2)
        ledger = Ledger(tmp_path / "ledger")
        for path in ledger.root.glob("fixed_coins/*/*"):
            for index, image in ledger.read(*path.parts[-3:-1], int(path.stem)).breaking():
                assert frozen(image[None]).argmax(1).item() != labels[index]
    assert results.outcomes["fixed_coins"].count(Status.BROKEN) > 0


def test_battery__works_on_fixed_coins_and_knows_that_the_system_is_stochastic(climbed):
    sanity = climbed[0].sanity
    assert "majority of 9" in sanity.check("S8").detail
    assert {id_: sanity.check(id_).verdict for id_ in ("S2", "S5", "S8")} == dict.fromkeys(("S2", "S5", "S8"), "pass")
    assert [check for check in sanity.checks if "could not be run" in check.detail] == []


def test_battery__standard_autoattack_does_not_apply_to_a_stochastic_purifier(linear, tmp_path):
    results, _ = run(linear, tmp_path, samples=8, threats=("none", "whitebox"), sanity=4)
    assert results.sanity.check("S8").verdict == "fail"
    assert "replace whitebox by eot" in results.sanity.check("S8").detail


def test_cache__attacks_on_the_bare_classifier_serve_a_stochastic_purifier_too(linear, tmp_path):
    threats = ("none", "blind", "blind_worst")
    classifier, mirror, images, labels = linear.build(16)
    plan = linear.plan(8, threats=threats, eps="4/255")
    options = {"cache_dir": tmp_path / "cache", "progress": False, "sanity": 0}
    evaluate(classifier, mirror, images, labels, plan, tmp_path / "a", **options)
    before = {path: path.read_bytes() for path in (tmp_path / "cache").rglob("*.safetensors")}
    cached, _ = run(linear, tmp_path / "b", threats=threats, cache_dir=tmp_path / "cache")
    fresh, _ = run(linear, tmp_path / "c", threats=threats)
    assert cached.ledger_hash == fresh.ledger_hash
    assert {path: path.read_bytes() for path in before} == before


@pytest.mark.parametrize("norm", ["Linf", "L2", "L1"])
@pytest.mark.parametrize("classes", [2, 3])
def test_eot__every_norm_and_number_of_classes(linear, tmp_path, norm, classes):
    generator = torch.Generator().manual_seed(1)
    images, classifier = 0.2 + 0.6 * torch.rand(6, 3, 6, 6, generator=generator), linear.Linear(classes).eval()
    with torch.no_grad():
        labels = classifier(images.flip(-1)).argmax(1)
    eps = {"Linf": "8/255", "L2": "0.5", "L1": "4"}[norm]
    plan = linear.plan(8, norm=norm, eps=eps, threats=("none", "eot"), **BUDGET)
    results = evaluate(classifier, Noisy(0.01).eval(), images, labels, plan, tmp_path, progress=False, sanity=0)
    assert results.complete
    names = {path.parts[-2] for path in (tmp_path / "ledger" / "eot").rglob("*.safetensors")}
    assert names <= {"apgd-ce"} | ({"apgd-dlr"} if classes > 2 else set()) | ({"pgd"} if norm != "L1" else set())
    assert results.row("eot")["acc_robust"] < results.row("none")["acc_robust"]


def test_cost__is_what_the_rungs_take_of_a_sample_that_no_draw_gets_wrong(linear, tmp_path):
    """What the preview reckons with, against the passes that were counted."""
    classifier, _, images, _ = linear.build(8)
    with torch.no_grad():
        labels = classifier(images.flip(-1)).argmax(1)
    plan = linear.plan(8, eps="1/2550000", threats=("none", "bpda", "eot"), **BUDGET)
    evaluate(classifier, Noisy(1e-3).eval(), images, labels, plan, tmp_path, progress=False, sanity=0)
    averaged = replace(plan.settings, version="rand")
    rung = expectation_rung("eot", None, None, eot_attacks(averaged, 10), plan.eot_steps, averaged, {}, "")
    lines = [json.loads(line) for path in (tmp_path / "timings").glob("*") for line in path.read_text().splitlines()]
    counted = {entry["attack"]: entry for entry in lines if entry["rung"] == "eot"}
    assert counted.keys() == rung.cost.keys()
    for attack, (forwards, backwards) in rung.cost.items():
        assert counted[attack]["backwards"] == 8 * backwards
        assert counted[attack]["forwards"] == 8 * (forwards + plan.judge_draws)
