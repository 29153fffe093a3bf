import pytest
import torch
from torch import nn

from maep_lightning.evaluation import evaluate
from maep_lightning.evaluation.outlook import estimate, recall
from maep_lightning.evaluation.preview import BACKWARD

pytestmark = pytest.mark.usefixtures("_no_figure")
THREATS = ("none", "blind:bim", "whitebox:apgd-ce")


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
        killed.setattr("maep_lightning.evaluation.report.write_pictures", _die)
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


def test_estimate__counts_no_attack_on_images_that_an_earlier_one_has_broken(linear, slow, tmp_path):
    plan = linear.plan(8, threats=("none", "blind"), eps="128/255")
    options = {"cache_dir": tmp_path / "cache"}
    results = evaluate(*slow, plan, tmp_path / "a", progress=False, sanity=0, **options)
    assert results.row("whitebox", defended=False)["acc_robust"] == 0
    classifier, _, images, labels = slow
    again = estimate(classifier, nn.Identity().eval(), images, labels, plan, tmp_path / "b", **options).attacks
    assert again == 16 * 2  # clean and attacked images through the new purifier
