import json
import re
from dataclasses import replace

import pytest
import torch
from torch import nn

from maep_lightning.attacks.target import Target
from maep_lightning.evaluation import evaluate
from maep_lightning.evaluation.ledger import Status
from maep_lightning.evaluation.sanity.battery import battery, weaker_rungs
from maep_lightning.evaluation.sanity.findings import Case
from maep_lightning.evaluation.sanity.probes import monotone, preconditions, silent_success
from maep_lightning.evaluation.summary import Outcome

pytestmark = pytest.mark.usefixtures("_no_figure")
THREATS = ("none", "blind", "whitebox")


def run(case, folder, linear, **options):
    plan = linear.plan(16, **({"threats": THREATS, "apgd_steps": 20} | options.pop("plan", {})))
    return evaluate(*case, plan, folder, progress=False, **options)


def case_of(linear, classifier=None, purifier=None, plan=None, samples=32):
    """What the battery works on, with labels that the model gives, so that every sample is right."""
    own, mirror, images, _ = linear.build(samples)
    classifier = (classifier or own).eval()
    purifier = (purifier or mirror).eval()
    with torch.no_grad():
        labels = classifier(purifier(images)).argmax(1)
    bare, defended = Target(classifier), Target(purifier, classifier)
    plan = linear.plan(16, **({"threats": THREATS, "apgd_steps": 20} | (plan or {})))
    return Case(bare, defended, images, labels, plan, {})


class Wrapped(nn.Module):
    def __init__(self, inner):
        super().__init__()
        self.inner = inner


class NanBackward(torch.autograd.Function):
    @staticmethod
    def forward(ctx, images):
        return images.clone()

    @staticmethod
    def backward(ctx, gradient):
        return gradient * torch.nan


class NanGradient(Wrapped):
    def forward(self, images):
        return self.inner(NanBackward.apply(images))


class Quantised(Wrapped):
    def forward(self, images):
        return self.inner((images * 16).round() / 16)


class StraightQuantised(Wrapped):
    """Quantised with a gradient that pretends it is not."""

    def forward(self, images):
        return self.inner(images + ((images * 8).round() / 8 - images).detach())


class Shattered(Wrapped):
    """Correct gradients that lead nowhere: a ripple of a ten-thousandth of the pixel range over the function."""

    def forward(self, images):
        return self.inner(images + 3e-4 * torch.sin(images * 1e5))


class PartlyDetached(nn.Module):
    """The work of the purifier does not show in its gradient, which is the identity's."""

    def forward(self, images):
        return images + (images.flip(-1) - images).detach()


class Randomised(Wrapped):
    def forward(self, images):
        return self.inner(images + 0.01 * torch.randn_like(images))


class RowNoise(Wrapped):
    """Noise of a fixed seed: the same at each call, another for each row of the batch."""

    def forward(self, images):
        noise = torch.randn(images.shape, generator=torch.Generator().manual_seed(0))
        return self.inner(images + 0.01 * noise)


class Softmax(Wrapped):
    def forward(self, images):
        return self.inner(images).softmax(1)


def test_battery__a_sound_model_passes(linear, tmp_path):
    results = run(linear.build(48), tmp_path, linear)
    assert {check.id: check.verdict for check in results.sanity.checks if check.verdict not in ("pass", "skip")} == {}
    ids = [check.id for check in results.sanity.checks]
    assert ids == sorted(ids, key=lambda text: int(text[1:]))
    assert {f"S{n}" for n in range(1, 15)} == set(ids)
    assert not results.sanity.withheld


@pytest.mark.faults
@pytest.mark.parametrize(
    ("spoil", "id_", "says"),
    [
        (lambda inner: {"classifier": NanGradient(inner)}, "S1", "NaN or infinite gradients for 100%"),
        (lambda inner: {"classifier": Quantised(inner)}, "S1", "zero gradients for 100%.*quantised"),
        (lambda inner: {"classifier": StraightQuantised(inner)}, "S2", "not those of the function"),
        (lambda inner: {"purifier": PartlyDetached()}, "S2", "detached, replaced or shattered"),
        (lambda inner: {"classifier": Shattered(inner)}, "S2", "shattered gradients"),
        (lambda inner: {"classifier": Quantised(inner)}, "S11", "[0-2] of 8 planted"),
        (lambda inner: {"classifier": Randomised(inner)}, "S8", "randomised.*repetition"),
        (lambda inner: {"classifier": RowNoise(inner)}, "S8", "randomised.*order or size of the batch"),
        (lambda inner: {"classifier": Softmax(inner)}, "S13", "softmax output"),
    ],
)
def test_battery__planted_faults_are_caught_by_name(linear, spoil, id_, says):
    check = battery(case_of(linear, **spoil(linear.Linear())), strict=False).check(id_)
    assert check.verdict == "fail"
    assert re.search(says, check.detail)


@pytest.mark.faults
def test_battery__detached_purifier_is_a_warning_where_nothing_rests_on_its_gradient(linear):
    class Detached(nn.Module):
        def forward(self, images):
            return images.detach().flip(-1)

    class DetachedClassifier(Wrapped):
        def forward(self, images):
            return self.inner(images).detach()

    case = case_of(linear, purifier=Detached(), plan={"threats": ("none", "blind")})
    assert battery(case, strict=False).check("S2").verdict == "warn"
    both = case_of(linear, classifier=DetachedClassifier(linear.Linear()), purifier=Detached())
    check = battery(both, strict=False).check("S1")
    assert (check.verdict, "detached" in check.detail) == ("fail", True)


@pytest.mark.faults
def test_preconditions__normalised_inputs_are_named(linear, tmp_path):
    case = case_of(linear)
    shifted = Case(case.bare, case.defended, case.images * 4 - 2, case.labels, case.plan, {})
    finding = preconditions(shifted)
    assert finding.verdict == "fail"
    assert "normalised inputs" in finding.detail
    classifier, purifier, images, labels = linear.build(8)
    with pytest.raises(ValueError, match="put the normalisation into the classifier"):
        run((classifier, purifier, images * 4 - 2, labels), tmp_path, linear)


@pytest.mark.faults
def test_strict__a_fail_withholds_the_headline_and_keeps_the_upper_bound(linear, tmp_path):
    classifier, purifier, images, labels = linear.build(24)
    case = (Softmax(classifier).eval(), purifier, images, labels)
    plain = run(case, tmp_path / "a", linear)
    strict = run(case, tmp_path / "b", linear, strict=True)
    assert plain.row("worst")["acc_robust"] is not None
    assert plain.ledger_hash == strict.ledger_hash
    row = strict.row("worst")
    assert (row["acc_robust"], row["complete"], row["ci95"][0]) == (None, False, 0.0)
    assert row["ci95"][1] == plain.row("worst")["ci95"][1]
    text = (tmp_path / "b" / "report.md").read_text()
    assert "Headline withheld: " in text
    assert "S13 (preconditions)" in text
    assert "| withheld |" in text
    content = json.loads((tmp_path / "b" / "results.json").read_text())["sanity"]
    assert content["withheld"] is True
    assert "softmax" in next(check["detail"] for check in content["checks"] if check["id"] == "S13")


def test_battery__is_not_run_again_for_the_same_ledger(linear, tmp_path, monkeypatch):
    case = linear.build(8)
    first = run(case, tmp_path, linear)
    monkeypatch.setattr("maep_lightning.evaluation.engine.battery", None)
    assert run(case, tmp_path, linear).sanity == first.sanity
    assert run(case, tmp_path, linear, sanity=0).sanity is None
    with pytest.raises(TypeError):
        run(case, tmp_path, linear, sanity=4)


@pytest.mark.faults
def test_battery__out_of_memory_halves_and_an_exception_is_a_fail(linear):
    class Small(Wrapped):
        limit = 4

        def forward(self, images):
            if len(images) > self.limit:
                raise torch.OutOfMemoryError("CUDA out of memory")
            return self.inner(images)

    small = Small(linear.Linear())
    small.limit = 99
    case = case_of(linear, classifier=small)
    small.limit = 4
    found = battery(case, strict=False)
    assert found.check("S1").verdict == found.check("S8").verdict == "pass"
    small.limit = 0
    broken = battery(case, strict=True)
    assert broken.check("S1").verdict == "fail"
    assert "OutOfMemoryError" in broken.check("S1").detail
    assert broken.withheld


@pytest.mark.parametrize("changes", [{"norm": "L2", "eps": "0.2"}, {"norm": "L1", "eps": "1"}, {"version": "rand"}])
@pytest.mark.parametrize("classes", [2, 3, 10])
def test_battery__runs_for_every_norm_and_number_of_classes(linear, changes, classes):
    found = battery(case_of(linear, linear.Linear(classes), plan=changes, samples=8), strict=False)
    assert [check for check in found.checks if "could not be run" in check.detail] == []
    assert found.failed == ()


@pytest.mark.parametrize(("norm", "eps"), [("Linf", "0.7"), ("L2", "12")])
def test_monotone__doubles_no_radius_beyond_what_attacks_take(linear, norm, eps):
    found = monotone(case_of(linear, plan={"norm": norm, "eps": eps}, samples=4))
    assert (found.verdict, found.numbers["broken_double"]) == ("pass", 4)


def test_silent_success__attacks_networks_without_weights_on_the_device_of_the_target(linear, monkeypatch):
    class Brightness(nn.Module):
        def forward(self, images):
            return torch.stack([images.flatten(1).mean(1), torch.full((len(images),), 0.5)], dim=1)

    case = case_of(linear, classifier=Brightness())
    told = replace(case, defended=Target(*case.defended.stages, device=torch.device("cpu", 0)))
    devices = []

    def attack(target, images, *args):
        devices.append(target.device)
        return images, []

    monkeypatch.setattr("maep_lightning.evaluation.sanity.probes.run_component", attack)
    assert silent_success(told).verdict == "pass"
    assert devices == [torch.device("cpu", 0)]


def outcome(name, *statuses):
    return Outcome(name, torch.tensor([int(status) for status in statuses], dtype=torch.uint8))


def test_weaker_rungs__what_only_a_weaker_attacker_breaks_is_counted(linear):
    robust, broken = Status.ROBUST, Status.BROKEN
    case = case_of(linear)
    outcomes = {
        "whitebox": outcome("whitebox", robust, robust, broken, robust),
        "square": outcome("square", broken, robust, robust, robust),
        "noise": outcome("noise", robust, robust, broken, robust),
    }
    finding = weaker_rungs(Case(case.bare, case.defended, case.images, case.labels, case.plan, outcomes))
    assert (finding.verdict, finding.numbers) == ("warn", {"only_square": 1.0, "only_noise": 0.0})
    outcomes["noise"] = outcome("noise", robust, broken, robust, robust)
    finding = weaker_rungs(Case(case.bare, case.defended, case.images, case.labels, case.plan, outcomes))
    assert finding.verdict == "fail"
    assert "2 of 4" in finding.detail
    assert "[0, 1]" in finding.detail


def test_weaker_rungs__named_attacks_stand_for_their_threat_model_together(linear):
    robust, broken = Status.ROBUST, Status.BROKEN
    case = case_of(linear)
    outcomes = {
        "blind:fgsm": outcome("blind:fgsm", broken, broken, robust, broken),
        "whitebox:apgd-ce": outcome("whitebox:apgd-ce", broken, robust, robust, robust),
        "whitebox:square": outcome("whitebox:square", robust, broken, robust, robust),
        "worst": outcome("worst", broken, broken, broken, broken),
    }
    finding = weaker_rungs(replace(case, outcomes=outcomes))
    assert finding.numbers == {"only_blind:fgsm": 1.0}
    assert "whitebox:apgd-ce and whitebox:square is hindered" in finding.detail
