import pytest
import torch
from torch import nn

from maep_lightning.evaluation import evaluate
from maep_lightning.evaluation.cost import estimate
from maep_lightning.evaluation.on_file import recall

pytestmark = pytest.mark.usefixtures("_no_figure")
THREATS = ("none", "blind:bim", "whitebox:apgd-ce")


def test_recall__knows_a_finished_evaluation_and_no_other(linear, tmp_path):
    case, plan = linear.build(16), linear.plan(8, threats=THREATS)
    assert recall(*case, plan, tmp_path, "cpu") is None
    results = evaluate(*case, plan, tmp_path, progress=False, sanity=0)
    assert recall(*case, plan, tmp_path, "cpu")["rows"] == results.rows
    assert recall(*case, linear.plan(8, threats=(*THREATS, "blind:fgsm")), tmp_path, "cpu") is None
    classifier, mirror, images, labels = case
    assert recall(classifier, nn.Identity().eval(), images, labels, plan, tmp_path, "cpu") is None
    assert recall(classifier, mirror, images, labels.roll(1), plan, tmp_path, "cpu") is None
    with torch.no_grad():
        classifier.bias[0] += 1e-3
    assert recall(*case, plan, tmp_path, "cpu") is None


@pytest.mark.kill
@pytest.mark.parametrize("threats", [("none", "blind:bim"), ("none",)])
def test_recall__a_run_that_ended_before_its_pictures_is_not_finished(linear, tmp_path, monkeypatch, threats):
    """Whether it is the first in its folder, or measured further threats beside others that have their pictures."""
    case, plan = linear.build(16), linear.plan(8, threats=("none", "blind:bim"))
    if threats != plan.threats:
        evaluate(*case, linear.plan(8, threats=threats), tmp_path, progress=False, sanity=0)
    with monkeypatch.context() as killed:
        killed.setattr("maep_lightning.evaluation.report.write.write_pictures", _die)
        with pytest.raises(SystemExit):
            evaluate(*case, plan, tmp_path, progress=False, sanity=0)
    assert (tmp_path / "results.json").exists()
    assert recall(*case, plan, tmp_path, "cpu") is None
    assert estimate(*case, plan, tmp_path).attacks == 0
    results = evaluate(*case, plan, tmp_path, progress=False, sanity=0)
    assert recall(*case, plan, tmp_path, "cpu")["rows"] == results.rows
    assert "BIM" in (tmp_path / "report.html").read_text()


def _die(*args):
    raise SystemExit


@pytest.mark.faults
@pytest.mark.parametrize("damage", [lambda text: text[: len(text) // 2], lambda text: "", lambda text: "[1]"])
def test_recall__damaged_results_are_made_anew_from_the_ledger(linear, tmp_path, damage):
    case, plan = linear.build(16), linear.plan(8, threats=THREATS)
    results = evaluate(*case, plan, tmp_path, progress=False, sanity=0)
    path = tmp_path / "results.json"
    path.write_text(damage(path.read_text()))
    assert recall(*case, plan, tmp_path, "cpu") is None
    assert estimate(*case, plan, tmp_path).attacks == 0
    evaluate(*case, plan, tmp_path, progress=False, sanity=0)
    assert recall(*case, plan, tmp_path, "cpu")["rows"] == results.rows


@pytest.mark.faults
def test_recall__an_incomplete_evaluation_is_not_finished(linear, tmp_path):
    class Moody(linear.Linear):
        def forward(self, images):
            if images.requires_grad and len(images) > 1:
                raise RuntimeError("broken")
            return super().forward(images)

    _, mirror, images, labels = linear.build(16)
    plan, case = linear.plan(8, threats=("none", "blind:bim")), (Moody().eval(), mirror, images, labels)
    assert not evaluate(*case, plan, tmp_path, progress=False, sanity=0).complete
    assert recall(*case, plan, tmp_path, "cpu") is None
