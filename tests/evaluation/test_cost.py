import pytest
import torch
from torch import nn

from maep_lightning.attacks.target import Target
from maep_lightning.evaluation import evaluate
from maep_lightning.evaluation.cost import BACKWARD, effort, estimate
from maep_lightning.evaluation.fingerprint import of_tensors
from maep_lightning.evaluation.sanity.battery import battery
from maep_lightning.evaluation.sanity.findings import Case

pytestmark = pytest.mark.usefixtures("_no_figure")
THREATS = ("none", "blind:bim", "whitebox:apgd-ce")


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


@pytest.mark.parametrize("purified", [True, False])
def test_evaluate__looks_at_the_images_of_a_chunk_once(linear, tmp_path, monkeypatch, purified):
    """Also where the clean images come from the cache, so that no pass of them is timed and nothing can be said."""
    classifier, mirror, images, labels = linear.build(20)
    case = (classifier, mirror if purified else None, images, labels)
    plan, cache, seen = linear.plan(2, threats=("none",)), tmp_path / "cache", []
    evaluate(*case, plan, tmp_path / "a", cache_dir=cache, progress=False, sanity=0)

    def counted(tensors):
        if tensors.keys() == {"images", "labels"}:
            seen.append(tensors)
        return of_tensors(tensors)

    monkeypatch.setattr("maep_lightning.evaluation.binding.fingerprint.of_tensors", counted)
    evaluate(*case, plan, tmp_path / "b", cache_dir=cache, progress=False, sanity=0)
    assert len(seen) == 10


def test_estimate__is_what_the_evaluation_costs_where_nothing_breaks(linear, slow, tmp_path):
    plan = linear.plan(8, threats=THREATS)
    expected = 16 * (1 + BACKWARD) * (10 + 7)  # BIM's steps, and APGD's with the one more it looks at
    judged = 16 * 4  # both clean rungs, and after each attack
    assert estimate(*slow, plan, tmp_path / "run").attacks == expected + judged
    assert not (tmp_path / "run").exists()


def test_estimate__counts_once_what_several_purifiers_share(linear, slow, tmp_path):
    classifier, _, images, labels = slow
    plan, planned = linear.plan(8, threats=THREATS), set()
    options = {"cache_dir": tmp_path / "cache", "planned": planned}
    first = estimate(*slow, plan, tmp_path / "a", **options).attacks
    second = estimate(classifier, nn.Identity().eval(), images, labels, plan, tmp_path / "b", **options).attacks
    assert first - second == 16 * (10 * (1 + BACKWARD) + 1)  # BIM and the undefended clean images
    evaluate(*slow, plan, tmp_path / "a", cache_dir=tmp_path / "cache", progress=False, sanity=0)
    assert estimate(*slow, plan, tmp_path / "a", **options).attacks == 0


def test_estimate__counts_no_attack_on_images_that_an_earlier_one_has_broken(linear, slow, tmp_path):
    plan = linear.plan(8, threats=("none", "blind"), eps="128/255")
    options = {"cache_dir": tmp_path / "cache"}
    results = evaluate(*slow, plan, tmp_path / "a", progress=False, sanity=0, **options)
    assert results.row("whitebox", defended=False)["acc_robust"] == 0
    classifier, _, images, labels = slow
    again = estimate(classifier, nn.Identity().eval(), images, labels, plan, tmp_path / "b", **options).attacks
    assert again == 16 * 2  # clean and attacked images through the new purifier
