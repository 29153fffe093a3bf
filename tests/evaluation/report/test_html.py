import csv
import json
import re
from dataclasses import replace
from html.parser import HTMLParser

import pytest
import torch
from matplotlib.axes import Axes
from torch import nn

from maep_lightning.data import ImageSource
from maep_lightning.evaluation import Subject, evaluate
from maep_lightning.evaluation.ledger import Ledger, Status
from maep_lightning.evaluation.report.html import staircase
from maep_lightning.evaluation.report.robustbench import reasons_against, robustbench_fields


@pytest.fixture(scope="module")
def finished(linear, tmp_path_factory):
    folder = tmp_path_factory.mktemp("page")
    names = tuple(f"<class {number}>" for number in range(10))
    subject = Subject(dataset="cifar10", classifier="linear & co", purifier="<flip>", class_names=names)
    case = linear.build(24)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("maep_lightning.evaluation.report.write.draw", lambda *args: None)
        results = evaluate(*case, linear.plan(8), folder, subject=subject, progress=False)
    return folder, results, case


class Reader(HTMLParser):
    void = ("meta", "img", "link")

    def __init__(self):
        super().__init__()
        self.open, self.seen, self.sources, self.words = [], [], [], []

    def handle_starttag(self, tag, attributes):
        self.seen.append(tag)
        self.sources += [value for name, value in attributes if name in ("src", "href")]
        if tag not in self.void:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.seen.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.words.append(data)


def test_page__is_one_file_that_needs_nothing_else(finished):
    reader = Reader()
    reader.feed((finished[0] / "report.html").read_text())
    assert reader.open == []
    assert "script" not in reader.seen
    assert "link" not in reader.seen
    assert reader.sources
    assert all(source.startswith("data:image/png;base64,") for source in reader.sources)


def test_page__says_what_the_table_says(finished):
    folder, results, _ = finished
    reader = Reader()
    reader.feed((folder / "report.html").read_text())
    text = " ".join(reader.words)
    assert "<flip> before linear & co" in text  # escaped, since the parser gives it back
    for words in ("Linf eps 2/255", "Gradient path: verified", "RobustBench-admissible: no", "Wilson 95 %"):
        assert words in text
    for row in results.rows:
        low, high = row["ci95"]
        assert f"{100 * row['acc_robust']:.1f} %" in text
        assert f"({100 * low:.1f} to {100 * high:.1f})" in text
    for check in results.sanity.checks:
        assert check.name in text
    assert "What still breaks: whitebox" in text
    assert results.ledger_hash in text


@pytest.mark.parametrize("threats", [("none", "blind:fgsm", "whitebox:apgd-ce"), ("none", "blind:fgsm")])
def test_pictures__show_the_strongest_threat_that_is_named_with_its_attacks(linear, tmp_path, monkeypatch, threats):
    titles, text = [], Axes.text

    def noted(self, x, y, words, **options):
        titles.append(words.replace("\n", " "))
        return text(self, x, y, words, **options)

    monkeypatch.setattr(Axes, "text", noted)
    classifier, _, images, _ = linear.build(4)
    case = (classifier, nn.Identity().eval(), images, classifier(images).argmax(1))
    results = evaluate(*case, linear.plan(4, threats=threats, eps="8/255"), tmp_path, progress=False, sanity=0)
    assert results.outcomes[threats[-1]].count(Status.BROKEN)
    assert f"What still breaks: {threats[-1]}" in (tmp_path / "report.html").read_text()
    assert {f"{threat.replace(':', ': ')} attacked" for threat in threats[1:]} <= set(titles)


def test_staircase__bars_are_as_long_as_the_accuracies(finished):
    results = finished[1]
    widths = [float(width) for width in re.findall(r'<rect [^>]*width="([\d.]+)"', staircase(results))]
    expected = [max(470 * row["acc_robust"], 1) for row in results.rows]
    assert widths == pytest.approx(expected, abs=0.1)


def test_audit__has_a_line_for_each_sample_and_attack_and_finds_the_images(finished):
    folder, results, (classifier, purifier, _, labels) = finished
    with (folder / "audit.csv").open() as stream:
        lines = list(csv.DictReader(stream))
    ledger = Ledger(folder / "ledger")
    units = [ledger.read(*path.parts[-3:-1], int(path.stem)) for path in ledger.root.rglob("*.safetensors")]
    assert len(lines) == sum(len(unit.indices) for unit in units)
    broken = {int(line["index"]) for line in lines if (line["rung"], line["status"]) == ("whitebox", "BROKEN")}
    assert broken == set((results.outcomes["whitebox"].status == Status.BROKEN).nonzero().squeeze(1).tolist())
    assert len({line["sample"] for line in lines}) == 24
    stored = [line for line in lines if line["stored"] and line["rung"] == "whitebox"]
    assert stored
    for line in stored:
        unit = ledger.read(line["rung"], line["attack"], int(line["chunk"]))
        with torch.no_grad():
            logits = classifier(purifier(unit.adversarial[int(line["stored"])][None]))[0]
        assert int(logits.argmax()) == int(line["prediction"]) != int(line["label"]) == labels[int(line["index"])]


def test_audit__pandas_reads_it(finished):
    pandas = pytest.importorskip("pandas")
    table = pandas.read_csv(finished[0] / "audit.csv")
    robust = table[(table.rung == "none")].status.eq("ROBUST").sum()
    assert robust == finished[1].outcomes["none"].count(Status.ROBUST)


def test_admissible__names_each_reason(finished, linear, tmp_path):
    folder, results, case = finished
    against = reasons_against(results)
    assert [reason for reason in against if "no leaderboard for cifar10 Linf 2/255" in reason]
    assert [reason for reason in against if "reduced" in reason]
    content = json.loads((folder / "robustbench.json").read_text())
    assert content == robustbench_fields(results)
    assert content["autoattack_acc"] is None
    assert content["clean_acc"] == f"{100 * results.row('none')['acc_clean']:.2f}"
    blind = linear.plan(8, threats=("none", "blind"), eps="8/255")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("maep_lightning.evaluation.report.write.draw", lambda *args: None)
        other = evaluate(*case, blind, tmp_path, subject=Subject(dataset="cifar10"), progress=False, sanity=0)
    assert {"24 of 10000 images", "the white-box rung was not climbed"} <= set(reasons_against(other))


def on(results, dataset, n, eps):
    values = results.manifest.values | {"n": n, "norm": "Linf", "eps": eps}
    subject = replace(results.subject, dataset=dataset)
    return replace(results, subject=subject, manifest=replace(results.manifest, values=values))


@pytest.mark.parametrize(
    ("image_list", "n", "objections"),
    [
        ("lists/imagenet_test_image_ids.txt", 5000, []),
        ("lists/imagenet_test_image_ids.txt", 200, ["200 of 5000 images"]),
        ("lists/imagenet_test_image_ids.txt", 5001, ["the 5000 images of its imagenet_test_image_ids.txt"]),
        ("mine.txt", 5000, ["the 5000 images of its imagenet_test_image_ids.txt"]),
        (None, 5000, ["give that file as image_list"]),
        (None, 1000, ["give that file as image_list", "1000 of 5000 images"]),
    ],
)
def test_admissible__of_imagenet_are_the_images_of_the_list(finished, image_list, n, objections):
    accepted = on(finished[1], "cifar10", 10_000, "8/255")
    results = on(finished[1], ImageSource("imagenet", image_list=image_list).title, n, "4/255")
    more = [reason for reason in reasons_against(results) if reason not in reasons_against(accepted)]
    assert len(more) == len(objections)
    assert all(part in reason for part, reason in zip(objections, more, strict=True))
    assert robustbench_fields(results)["dataset"] == "imagenet"
