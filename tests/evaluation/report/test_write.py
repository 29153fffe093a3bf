import json

import pytest
import torch
from matplotlib.image import imread
from torch import nn

from maep_lightning.evaluation import Plan, Subject, evaluate

FIELDS = (
    "dataset split n classifier purifier policy threat attack norm eps acc_undefended_clean acc_clean acc_robust ci95"
    " complete seconds"
)


@pytest.fixture(scope="module")
def finished(linear, tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    reference = folder / "published.json"
    row = {"classifier": "WRN", "norm": "Linf", "threat": "blind", "attack": "AutoAttack", "source": "their Table 1"}
    rows = [
        row | {"system": "Theirs", "dataset": "shapes", "eps": "2/255", "clean": 0.9, "robust": 0.8},
        row | {"system": "Elsewhere", "dataset": "other", "eps": "2/255", "clean": 0.9, "robust": 0.8},
        row | {"system": "Weaker", "dataset": "shapes", "eps": "1/255", "clean": 0.9, "robust": None},
    ]
    reference.write_text(json.dumps({"rows": rows}))
    subject = Subject(dataset="shapes", classifier="linear", purifier="flip")
    case = linear.build(20)
    results = evaluate(*case, linear.plan(8), folder, subject=subject, reference=reference, progress=False)
    return folder, results


def test_results__file_has_exactly_the_agreed_fields(finished):
    folder, results = finished
    content = json.loads((folder / "results.json").read_text())
    assert list(content) == ["schema", "run", "rows", "plan", "sanity"]
    assert content["schema"] == 1
    assert list(content["run"]) == ["command", "commit", "dirty", "seed", "hardware", "versions", "seconds"]
    assert content["rows"] == results.rows
    for row in content["rows"]:
        assert " ".join(row) == FIELDS
        assert 0 <= row["ci95"][0] <= row["acc_robust"] <= row["ci95"][1] <= 1
    threats = [(row["purifier"], row["threat"], row["eps"]) for row in content["rows"]]
    assert threats == [
        (None, "none", "0"),
        (None, "whitebox", "2/255"),
        ("flip", "none", "0"),
        ("flip", "blind", "2/255"),
        ("flip", "whitebox", "2/255"),
        ("flip", "worst", "2/255"),
    ]


def test_report__says_the_threat_model_first(finished):
    folder, results = finished
    lines = (folder / "report.md").read_text().splitlines()
    assert lines[0] == "# flip before linear"
    for text in ("Linf eps 2/255", "reduced", "none, blind, whitebox", "n = 20", "seed 0", "Hardware", "Trained on"):
        assert text in lines[2]
    assert results.ledger_hash in "\n".join(lines)


def test_report__published_rows_of_the_same_threat_only(finished):
    text = (finished[0] / "report.md").read_text()
    assert "| Theirs | WRN | blind | AutoAttack | 90.00 % | 80.00 % | their Table 1 |" in text
    assert "Elsewhere" not in text
    assert "Weaker" not in text


def test_report__figure_is_drawn(finished):
    picture = imread(finished[0] / "report.png")
    assert picture.shape[0] > 500
    assert picture.std() > 0.1


def test_report__of_a_purifier_that_enlarges_is_whole(linear, tmp_path):
    classifier = nn.Sequential(nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Linear(48, 5)).eval()
    images = linear.build(4)[2]
    larger, labels = nn.Upsample(scale_factor=2).eval(), classifier(images).argmax(1)
    plan = linear.plan(4, threats=("none", "noise"))
    evaluate(classifier, larger, images, labels, plan, tmp_path, progress=False, sanity=0)
    assert imread(tmp_path / "report.png").std() > 0.1
    assert (tmp_path / "report.html").exists()


def test_report__bad_reference_is_refused(linear, tmp_path):
    (tmp_path / "bad.json").write_text('{"rows": [{"system": "x"}]}')
    with pytest.raises(ValueError, match=r"bad\.json is no file of published rows"):
        evaluate(*linear.build(4), linear.plan(4), tmp_path, reference=tmp_path / "bad.json", progress=False)


NAMES = tuple(f"class {number}" for number in range(4))


def test_report__predictions_beyond_the_class_names_go_by_their_number(linear, tmp_path, capsys):
    """Labels 0 to 3 of 4 names, and a classifier of 10 logits."""
    classifier, _, images, _ = linear.build(60)
    with torch.no_grad():
        labels = classifier(images).argmax(1)
    images, labels = images[labels < 4], labels[labels < 4]
    subject = Subject(class_names=NAMES)
    evaluate(classifier, None, images, labels, linear.plan(8, threats=("none", "whitebox")), tmp_path, subject=subject)
    warning = "The classifier has 10 logits, and the data have 4 classes"
    assert warning in capsys.readouterr().err.partition("chunk 1 of")[0]
    assert warning in (tmp_path / "report.md").read_text()
    assert (tmp_path / "report.png").exists()
    page = (tmp_path / "report.html").read_text()
    assert any(f"✗ {number}<" in page for number in range(4, 10))
    assert f"class {int(labels[0])}" in page


def test_report__a_picture_that_fails_loses_no_results(linear, tmp_path, monkeypatch):
    def fail(*args):
        raise IndexError("tuple index out of range")

    monkeypatch.setattr("maep_lightning.evaluation.report.write.draw", fail)
    with pytest.raises(IndexError):
        evaluate(*linear.build(4), linear.plan(4), tmp_path, progress=False, sanity=0)
    assert json.loads((tmp_path / "results.json").read_text())["rows"]
    assert (tmp_path / "report.md").exists()
    assert (tmp_path / "audit.csv").exists()


def test_evaluate__refuses_fewer_logits_than_classes_before_any_attack(linear, tmp_path):
    subject = Subject(class_names=tuple("abcdefghijkl"))
    with pytest.raises(ValueError, match="10 logits, and the data have 12 classes"):
        evaluate(*linear.build(4), linear.plan(4), tmp_path, subject=subject, progress=False)
    assert not (tmp_path / "ledger").exists()


@pytest.mark.usefixtures("_no_figure")
@pytest.mark.parametrize(
    ("threats", "title"),
    [
        (["none"], "no attack"),
        (["none", "blind:fgsm"], "FGSM"),
        (["none", "whitebox:apgd-ce", "blind:fgsm"], "FGSM; apgd-ce (100 steps)"),
        (["none", "square", "noise"], "any of 100 random corners of the ball; square (3 queries)"),
    ],
)
def test_report__title_names_the_attacks_that_ran(linear, tmp_path, capsys, threats, title):
    """A plan's defaults are those of AutoAttack, which none of these runs."""
    plan = Plan(eps="2/255", threats=threats, chunk_size=4, square_queries=3)
    evaluate(*linear.build(4), plan, tmp_path, sanity=0)
    text = (tmp_path / "report.md").read_text()
    assert f"**Linf eps 2/255, {title}.** Threat models: " in text
    assert "AutoAttack" not in text
    assert f"4 images in 1 chunks, Linf eps 2/255: {title}\n" in capsys.readouterr().err


@pytest.mark.usefixtures("_no_figure")
def test_report__title_names_autoattack_where_it_ran(linear, tmp_path):
    plan = Plan(eps="2/255", threats=["none", "blind", "blind:fgsm", "whitebox"], chunk_size=1)
    evaluate(*linear.build(1), plan, tmp_path, progress=False, sanity=0)
    assert "**Linf eps 2/255, AutoAttack standard; FGSM.** Threat models: " in (tmp_path / "report.md").read_text()


@pytest.mark.usefixtures("_no_figure")
@pytest.mark.parametrize(("policy", "name"), [("native", "flip"), ("tile:32", "flip (policy tile:32)")])
def test_report__names_the_resolution_policy(linear, tmp_path, policy, name):
    subject, plan = Subject(classifier="linear", purifier="flip", policy=policy), linear.plan(4, threats=("none",))
    evaluate(*linear.build(4), plan, tmp_path, subject=subject, progress=False, sanity=0)
    text = (tmp_path / "report.md").read_text()
    assert text.startswith(f"# {name} before linear\n")
    assert f"| linear behind {name} | none |" in text
    assert f"<h1>{name} before linear</h1>" in (tmp_path / "report.html").read_text()
    assert json.loads((tmp_path / "robustbench.json").read_text())["name"] == f"linear behind {name}"
