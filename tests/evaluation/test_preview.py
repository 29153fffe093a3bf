import pytest
import torch
from torch import nn

from maep_lightning.attacks.target import Target
from maep_lightning.evaluation import evaluate
from maep_lightning.evaluation.findings import Case
from maep_lightning.evaluation.preview import BACKWARD, effort
from maep_lightning.evaluation.sanity import battery

pytestmark = pytest.mark.usefixtures("_no_figure")


class Counting(nn.Module):
    """Counts the images of all its copies, since a probe works on one."""

    forwards = differentiable = 0

    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, images):
        Counting.forwards += len(images)
        Counting.differentiable += len(images) * images.requires_grad
        return self.inner(images)


@pytest.mark.parametrize(
    "changes", [{}, {"apgd_steps": 60}, {"norm": "L1", "eps": "0.001"}], ids=["short", "longer", "L1"]
)
def test_effort__is_what_the_battery_costs_where_nothing_breaks(linear, changes):
    classifier, mirror, images, _ = linear.build(20)
    with torch.no_grad():
        labels = classifier(mirror(images)).argmax(1)
    plan = linear.plan(8, **({"eps": "1/255000"} | changes))
    case = Case(Target(classifier), Target(mirror, Counting(classifier).eval()), images, labels, plan, {})
    Counting.forwards = Counting.differentiable = 0
    battery(case, strict=False)
    forwards, backwards = effort(plan, len(labels))
    assert Counting.differentiable <= backwards <= 1.3 * Counting.differentiable
    assert Counting.forwards <= forwards <= 1.3 * Counting.forwards


def test_evaluate__says_before_the_attacks_what_they_and_the_battery_cost(linear, slow, tmp_path, capsys, monkeypatch):
    def said(folder, sanity):
        plan, folder = linear.plan(8, threats=("none", "blind_worst")), tmp_path / folder
        evaluate(*slow, plan, folder, progress=True, cache_dir=tmp_path / "cache", sanity=sanity)
        (line,) = (line for line in capsys.readouterr().err.splitlines() if "at most about" in line)
        return line.removeprefix("[evaluation] at most about ")

    monkeypatch.setattr("maep_lightning.evaluation.progress.clock", lambda seconds: f"{seconds:.0f} s")
    forwards, backwards = effort(linear.plan(8), 4)
    battery_alone = forwards + BACKWARD * backwards
    judged = 16 * 8 + 8  # each simple attack, and the clean images of the second chunk
    attacks = 16 * (1 + 10 + 10 + 5 * 40) * (1 + BACKWARD) + judged + 8
    assert said("a", sanity=4) == (
        f"{attacks + battery_alone:.0f} s if no image breaks, {battery_alone:.0f} s of it the sanity battery;"
        " broken ones cost far less (1e+03 ms a forward pass)"
    )
    # What is in the cache costs nothing more, but for the judge.
    assert said("b", sanity=0).startswith(f"{judged:.0f} s if no image breaks; broken")
