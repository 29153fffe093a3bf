"""Purifiers that are no trained autoencoder, under the harness: what it says of them, and stacking."""

import pytest
import torch
from torch import nn

from maep_lightning.attacks.target import Target
from maep_lightning.evaluation import Plan, evaluate
from maep_lightning.evaluation.plan import PlanChangedError
from maep_lightning.evaluation.report.robustbench import reasons_against
from maep_lightning.evaluation.sanity.battery import battery
from maep_lightning.evaluation.sanity.findings import Case
from maep_lightning.evaluation.sanity.slopes import finite_differences, gradients
from maep_lightning.models.registry import load_purifier

pytestmark = pytest.mark.usefixtures("_no_figure")
EPS = 8 / 255


class Smooth(nn.Module):
    """Logits that are a smooth function of the images, different for each pixel."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(4, 3, 12, 12, generator=torch.Generator().manual_seed(0)))

    def forward(self, images):
        return torch.sin(3 * images).flatten(1) @ self.weight.flatten(1).T


def case(spec, classifier=None):
    images = torch.rand(8, 3, 12, 12, generator=torch.Generator().manual_seed(1))
    classifier, purifier = (classifier or Smooth()).eval(), load_purifier(spec)
    with torch.no_grad():
        labels = classifier(purifier(images)).argmax(1)
    budget = {"apgd_steps": 5, "fab_steps": 1, "square_queries": 2, "targets": 1}
    plan = Plan(eps="8/255", threats=("none", "bpda", "whitebox"), chunk_size=16, **budget)
    return Case(Target(classifier), Target(purifier, classifier), images, labels, plan, {})


@pytest.mark.parametrize("spec", ["jpeg:75", "bit-depth:4"])
def test_battery__a_replaced_gradient_is_found_out(spec, tmp_path):
    """Their white-box figure rests on the identity's gradient, so the report must not call that path verified."""
    checked = case(spec)
    purifier, classifier = checked.defended.stages
    results = evaluate(
        classifier, purifier, checked.images, checked.labels, checked.plan, tmp_path, sanity=8, progress=False
    )
    assert results.sanity.check("S1").verdict == "pass"
    assert results.sanity.check("S2").verdict == "fail"
    assert "replaced" in results.sanity.check("S2").detail
    assert "Gradient path: verified" not in (tmp_path / "report.md").read_text()
    assert "gradients that are not those of the function" in reasons_against(results)


@pytest.mark.parametrize("spec", ["identity", "median:3", "gaussian:0.8", "resize:9", "gaussian:0.5+median:3"])
def test_battery__exact_gradients_pass(spec):
    checked = case(spec)
    assert gradients(checked).verdict == "pass"
    assert finite_differences(checked).verdict == "pass"


def test_battery__noise_is_found_to_be_random():
    assert battery(case("noise:0.1"), strict=False).check("S8").verdict == "fail"


def test_evaluate__a_run_folder_belongs_to_one_value_of_the_parameter(tmp_path):
    """The weights of all baselines are alike (there are none): the value must be part of what a run is bound to."""
    one = case("median:3")
    arguments = (one.images, one.labels, one.plan, tmp_path)
    evaluate(one.bare.stages[0], load_purifier("median:3"), *arguments, progress=False, sanity=0)
    with pytest.raises(PlanChangedError, match="purifier_architecture"):
        evaluate(one.bare.stages[0], load_purifier("median:5"), *arguments, progress=False, sanity=0)


class Colour(nn.Module):
    """A stand-in for an adversarially trained classifier: the mean of each channel, which moves by at most eps.

    An image whose largest mean is more than 2 eps above the next cannot be broken.
    """

    def forward(self, images):
        return 50 * images.mean(dim=(2, 3))


class Fragile(nn.Module):
    """As right on clean images, by weights that a small perturbation of every pixel turns over."""

    def __init__(self):
        super().__init__()
        self.signs = nn.Parameter(torch.randn(3, 3, 12, 12, generator=torch.Generator().manual_seed(0)).sign())

    def forward(self, images):
        return Colour()(images) + (images - images.mean((2, 3), keepdim=True)).flatten(1) @ self.signs.flatten(1).T


@pytest.mark.parametrize("spec", ["gaussian:0.8", "bit-depth:6"])
def test_stacking__a_robust_classifier_stays_robust_behind_a_purifier(spec, tmp_path):
    torch.manual_seed(0)
    labels = torch.arange(12) % 3
    images = torch.full((12, 3, 12, 12), 0.45)
    images[torch.arange(12), labels] += 4 * EPS
    budget = {"apgd_steps": 10, "fab_steps": 2, "square_queries": 5, "targets": 2}
    plan = Plan(eps="8/255", threats=("none", "blind", "whitebox"), chunk_size=12, **budget)
    found = {}
    for name, classifier in (("robust", Colour()), ("fragile", Fragile())):
        arguments = (load_purifier(spec), images, labels, plan, tmp_path / name)
        results = evaluate(classifier.eval(), *arguments, progress=False, sanity=0)
        rows = {(row["threat"], row["purifier"] is not None): row["acc_robust"] for row in results.rows}
        assert rows["none", True] == rows["none", False] == 1
        found[name] = rows
    assert found["robust"]["whitebox", True] == found["robust"]["blind", True] == found["robust"]["worst", True] == 1
    assert found["fragile"]["whitebox", True] < 0.5
