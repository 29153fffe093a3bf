"""The transfer matrix: from its YAML to cells, going on after a kill, and what its reports say."""

import csv
import json
import shutil
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
import torch
import yaml
from matplotlib.backends.backend_agg import FigureCanvasAgg
from PIL import Image
from torchvision import datasets

from experiments.transfer import policies, run
from experiments.transfer.heatmap import column_of, draw_heatmap, lowest
from experiments.transfer.matrix import Cell, Trained, read_study
from experiments.transfer.measured import Measured
from experiments.transfer.tables import best_rows, headline, honesty, table
from maep_lightning.cli import main
from maep_lightning.data import ImageSource
from maep_lightning.evaluation.ledger import LedgerError
from maep_lightning.evaluation.normalization import NormalizationCheck
from maep_lightning.evaluation.plan import Manifest
from maep_lightning.evaluation.threats import Threat
from maep_lightning.models.classifiers import create_classifier, save_classifier
from maep_lightning.models.registry import create_purifier

STUDIES = sorted(Path("experiments/transfer").resolve().glob("*.yaml"))
CPU = torch.device("cpu")
BUDGET = {"apgd_steps": 2, "fab_steps": 1, "square_queries": 2, "targets": 1}


@pytest.fixture(autouse=True)
def _no_pictures(monkeypatch):
    """Drawing takes longer than these evaluations."""
    monkeypatch.setattr("maep_lightning.evaluation.report.write.draw", lambda *args: None)


@pytest.fixture
def content(tmp_path, monkeypatch):
    """A study of two purifiers on digits, with a small classifier."""
    torch.manual_seed(0)
    monkeypatch.setenv("MAEP_DATA_DIR", str(tmp_path / "data"))
    save_classifier(create_classifier("resnet8", 10), tmp_path / "small.safetensors", "resnet8", 10)
    grid = {"dataset": "digits", "classifier": "small", "purifier": ["blur", "median"], "ball": "Linf 8/255"}
    grid |= {"n": 4, "threats": ["blind:fgsm", "blind:bim"], "budget": BUDGET}
    return {
        "purifiers": {"blur": {"spec": "gaussian:0.5", "trained_on": "paint"}, "median": "median:3"},
        "classifiers": {"small": str(tmp_path / "small.safetensors")},
        "datasets": {"digits": None},
        "grids": {"blind": grid},
    }


@pytest.fixture
def study(tmp_path, content):
    """Writes the content, and reads it as a study."""

    def read(only=()):
        path = tmp_path / "study.yaml"
        path.write_text(yaml.safe_dump(content, sort_keys=False))
        return read_study(path, only)

    return read


@pytest.fixture
def evaluated(monkeypatch):
    """Titles of the cells that are evaluated, in order."""
    seen = []
    real = run.evaluate
    monkeypatch.setattr(run, "evaluate", lambda *args, **kw: seen.append(kw["subject"].purifier) or real(*args, **kw))
    return seen


@pytest.mark.parametrize("path", STUDIES, ids=lambda path: path.stem)
def test_shipped_studies__name_purifiers_policies_and_attacks_that_exist(path):
    study = read_study(path)
    materials = run.Materials(study, CPU)
    for cell in study.cells:
        materials.purifier(cell.purifier, cell.policy)
        assert cell.plan.n == cell.n


@pytest.mark.parametrize("scale", ["smoke", "cpu", "gpu"])
def test_make__trains_the_classifiers_that_the_study_finds_under_runs(dry_run, tmp_path, scale):
    root = STUDIES[0].parents[2]
    (tmp_path / "cifar-100-python").mkdir()
    made = dry_run("transfer", f"SCALE={scale}").stdout
    classifiers = read_study(root / f"experiments/transfer/{scale}.yaml").classifiers
    wanted = {name: frozen for name, frozen in classifiers.items() if frozen.source.startswith("runs/")}
    trained = [line for line in made.splitlines() if "lightning fit " in line]
    assert len(trained) == len([f for f in wanted.values() if not (root / f.source).exists()])
    for name, frozen in wanted.items():
        assert f'echo "[classifier] done: {frozen.source}"' in made or (root / frozen.source).exists()
        if name == "cifar100-resnet20":
            assert trained[0].split("--model.init_args.classifier ")[-1].split()[0] == "resnet20"  # the last one counts
            assert scale in Path(frozen.source).parts[2]


def test_smoke_study__has_cells_where_nothing_lies_but_the_classifier_that_make_trains(tmp_path, monkeypatch):
    (smoke,) = (path for path in STUDIES if path.stem == "smoke")
    monkeypatch.setenv("MAEP_DATA_DIR", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    study = read_study(smoke)
    for frozen in study.classifiers.values():
        if frozen.source.startswith("runs/"):
            Path(frozen.source).parent.mkdir(parents=True)
            save_classifier(create_classifier("resnet8", 10), frozen.source, "resnet8", 10)
    ready = run.present(study, run.Materials(study, CPU))
    assert {cell.dataset for cell in ready} == {"digits"}
    assert {cell.purifier for cell in ready} == {*study.purifiers}


def test_expansion__is_the_product_of_the_axes(study, content):
    grid = content["grids"]["blind"]
    grid |= {"ball": ["Linf 8/255", "L2 0.5"], "policy": ["tile:16", "overlap:16"], "threats": "whitebox"}
    cells = study().cells
    assert len(cells) == len({cell.folder for cell in cells}) == 2 * 2 * 2
    assert {(cell.norm, cell.eps) for cell in cells} == {("Linf", "8/255"), ("L2", "0.5")}
    assert all(cell.threats == ("none", "whitebox") and cell.knowing for cell in cells)
    assert cells[0].plan.apgd_steps == BUDGET["apgd_steps"]


def test_expansion__grids_about_the_same_cell_join_their_threats(study, content):
    content["grids"]["white"] = content["grids"]["blind"] | {"purifier": "blur", "threats": ["whitebox:apgd-ce"]}
    content["grids"]["more"] = content["grids"]["blind"] | {"purifier": "blur", "n": 5}
    cells = {(cell.purifier, cell.n): cell for cell in study().cells}
    assert list(cells) == [("blur", 4), ("median", 4), ("blur", 5)]
    assert cells["blur", 4].threats == ("none", "blind:fgsm", "blind:bim", "whitebox:apgd-ce")
    assert cells["blur", 4].folder == next(c for c in study(["blind"]).cells if c.purifier == "blur").folder
    assert not cells["median", 4].knowing


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"purifier": "medain"}, "grid 'blind': there is no purifier 'medain'.*Did you mean median"),
        ({"classifier": "smal"}, "no classifier 'smal'.*Did you mean small"),
        ({"dataset": "digit"}, "no dataset 'digit'.*Did you mean digits"),
        ({"policy": "overlpa:16"}, "Unknown resolution policy 'overlpa:16'.*Did you mean overlap"),
        ({"threats": ["transfer"]}, "grid 'blind': transfer attacks a surrogate classifier, and a study has none"),
        ({"threats": ["blind:fgms"]}, "grid 'blind': .*no attack 'fgms'.*Did you mean fgsm"),
        ({"ball": "Linf 8"}, "grid 'blind': "),
        ({"tile": 4}, "no option 'tile'"),
        ({"n": 1000}, "blur @ native before small on digits .1000 images.*only 397"),
        ({"n": "four"}, "grid 'blind': n must be a whole number, not 'four'"),
        ({"budget": {"apgd_steps": 2.5}}, "grid 'blind': apgd_steps must be a whole number, not 2.5"),
        ({"budget": {"apgd_step": 4}}, "no budget 'apgd_step'.*Did you mean apgd_steps"),
    ],
)
def test_unknown_names__are_refused_before_anything_is_measured(study, content, tmp_path, evaluated, change, message):
    content["grids"]["blind"] |= change
    with pytest.raises(ValueError, match=message):
        run.measure(study(), tmp_path / "runs" / "study", CPU)
    assert evaluated == []


def test_unknown_purifier_and_classifier_texts__name_the_cell(study, content, tmp_path):
    content["purifiers"]["median"] = "medina:3"
    with pytest.raises(ValueError, match=r"median @ native before small.*'medina:3'.*Did you mean median"):
        run.measure(study(), tmp_path / "runs" / "study", CPU)
    content["classifiers"]["small"] = "missing.safetensors"
    with pytest.raises(ValueError, match=r"before small.*no weights file missing"):
        run.measure(study(), tmp_path / "runs" / "study", CPU)


@pytest.mark.parametrize(
    ("part", "value", "message"),
    [
        ("purifiers", ["median:3"], "study.yaml: purifiers must be names with values.*not ..median:3"),
        ("purifiers", {"median": ["median:3"]}, "purifier median must be names with values"),
        ("purifiers", {"median": {"trained_on": "paint"}}, "purifier median lacks spec"),
        ("datasets", {"digits": "digits"}, "data set digits must be names with values"),
        ("grids", [{"n": 4}], "study.yaml: grids must be names with values"),
        ("grids", {"blind": ["digits"]}, "grid 'blind' must be names with values"),
        ("grid", {"budget": [2]}, "grid 'blind': budget must be names with values"),
        ("grid", {"threats": [{"blind": "fgsm"}]}, "grid 'blind': the threat .* is no text such as blind"),
        ("grid", {"policy": 32}, "grid 'blind': policy must be text such as tile:32, not 32"),
        ("grid", {"ball": ["Linf 8/255", 0.5]}, "grid 'blind': ball must be text such as Linf 8/255, not 0.5"),
        ("grid", {"optional": "no"}, "grid 'blind': optional must be true or false, not 'no'"),
        ("seed", "abc", "study.yaml: seed must be a whole number, not 'abc'"),
        ("purifiers", {"median": {"spec": 3}}, "purifier median: spec must be text, not 3"),
        (
            "purifiers",
            {"blur": {"spec": "median:3", "trained_on": 10}},
            "purifier blur: trained_on must be text, not 10",
        ),
        ("purifiers", {75: "jpeg:75"}, "study.yaml: purifiers: the name 75 must be text; put it into quotes"),
        ("classifiers", {"small": {"source": "x", "name": 3}}, "classifier small: name must be text, not 3"),
        (
            "classifiers",
            {"small": {"source": "x", "num_classes": "10"}},
            "classifier small: num_classes must be a whole number, not '10'",
        ),
        (
            "datasets",
            {"digits": {"image_size": "big"}},
            "data set digits: image_size must be a whole number, not 'big'",
        ),
        ("datasets", {"digits": {"crop_pct": "1"}}, "data set digits: crop_pct must be a number, not '1'"),
        ("datasets", {"digits": {"crop": 1}}, "data set digits: there is no option 'crop'.*Did you mean crop_pct"),
    ],
)
def test_read_study__says_in_a_line_what_is_not_as_it_should_be(study, content, part, value, message):
    if part == "grid":
        part, value = "grids", {"blind": content["grids"]["blind"] | value}
    content[part] = value
    with pytest.raises(ValueError, match=message) as found:
        study()
    assert "\n" not in str(found.value)


def test_read_study__says_in_a_line_where_a_file_is_no_yaml(tmp_path):
    (tmp_path / "study.yaml").write_text("purifiers:\n  blur: [gaussian:0.5\nclassifiers:\n")
    with pytest.raises(ValueError, match=r"^study.yaml, line 3: this is no YAML: .*\.$"):
        read_study(tmp_path / "study.yaml")


def test_grids__may_be_chosen_by_name(study):
    with pytest.raises(ValueError, match=r"no grid 'blnd'.*Did you mean blind"):
        study(["blnd"])


@pytest.mark.kill
def test_measure__goes_on_where_it_was_stopped_and_repeats_nothing(study, tmp_path, evaluated, monkeypatch, capsys):
    runs, real = tmp_path / "runs" / "study", run.evaluate

    def stopped(*args, **kw):
        if kw["subject"].purifier == "median":
            raise KeyboardInterrupt
        return real(*args, **kw)

    with monkeypatch.context() as patch:
        patch.setattr(run, "evaluate", stopped)
        with pytest.raises(KeyboardInterrupt):
            run.measure(study(), runs, CPU)
    assert evaluated == ["blur"]
    run.measure(study(), runs, CPU)
    run.measure(study(), runs, CPU)
    assert evaluated == ["blur", "median"]
    assert "2 cells, 2 of them on file; at most about 0 s" in capsys.readouterr().err


def test_measure__grids_of_one_cell_can_be_measured_one_after_the_other(study, content, tmp_path, evaluated):
    content["grids"]["blind"]["purifier"] = "blur"
    content["grids"]["white"] = content["grids"]["blind"] | {"threats": ["whitebox:apgd-ce"]}
    runs = tmp_path / "runs" / "study"
    blind = ["none", "blind", "blind", "blind_worst"]
    expected = [blind, [*blind[:-1], "whitebox", "blind_worst", "worst"]]
    for only, threats in zip((["blind"], ["white"], ["blind"]), (*expected, expected[-1]), strict=True):
        run.measure(study(), runs, CPU, study(only))
        rows = json.loads((runs / "results.json").read_text())["rows"]
        assert [row["threat"] for row in rows if row["purifier"]] == threats
    content["grids"] = dict(reversed(content["grids"].items()))  # nor does the order in the file matter
    run.measure(study(), runs, CPU)
    assert evaluated == ["blur", "blur"]


def test_measure__a_threat_taken_out_of_the_file_is_kept_on_file_and_not_reported(study, content, tmp_path, evaluated):
    grid, runs = content["grids"]["blind"], tmp_path / "runs" / "study"
    every = ["noise", "blind:fgsm", "blind:bim", "blind", "whitebox:fgsm", "whitebox:apgd-ce"]

    def reported(*threats):
        grid.update(purifier="blur", threats=list(threats))
        run.measure(study(), runs, CPU)
        return json.loads((runs / "results.json").read_text())["rows"]

    whole = reported(*every)
    rows = reported("blind:fgsm", "whitebox:fgsm", "whitebox:apgd-ce")
    assert [(row["threat"], row["attack"]) for row in rows if row["purifier"]] == [
        ("none", "none"),
        ("blind", "FGSM"),
        ("whitebox", "FGSM"),
        ("whitebox", "apgd-ce (2 steps)"),
        ("blind_worst", "worst of blind:fgsm (apgd_steps 2, fab_steps 1, square_queries 2, targets 1)"),
        ("worst", "worst of blind:fgsm, whitebox:fgsm, whitebox:apgd-ce"
         " (apgd_steps 2, fab_steps 1, square_queries 2, targets 1)"),
    ]  # fmt: skip
    assert [row["threat"] for row in rows if not row["purifier"]] == ["none"]
    shutil.copytree(runs, tmp_path / "runs" / "fresh")
    (cell,) = study().cells
    shutil.rmtree(tmp_path / "runs" / "fresh" / cell.folder)
    run.measure(study(), tmp_path / "runs" / "fresh", CPU)
    fresh = json.loads((tmp_path / "runs" / "fresh" / "results.json").read_text())["rows"]
    assert [row | {"seconds": 0} for row in fresh] == [row | {"seconds": 0} for row in rows]
    assert [row["threat"] for row in reported("whitebox:fgsm") if row["purifier"]] == ["none", "whitebox"]
    assert [row["threat"] for row in reported("blind", "whitebox:fgsm")] == [
        "none", "whitebox", "none", "blind", "whitebox", "blind_worst", "worst"
    ]  # fmt: skip
    assert reported(*every) == whole
    assert evaluated == ["blur", "blur"]


def test_measure__an_evaluation_that_was_begun_with_a_further_threat_is_finished(study, content, tmp_path, capsys):
    content["grids"]["blind"]["purifier"] = "blur"
    runs = tmp_path / "runs" / "study"
    run.measure(study(), runs, CPU)
    (cell,) = study().cells
    (runs / cell.folder / "results.json").unlink()
    content["grids"]["blind"]["threats"] = ["blind:fgsm"]
    run.measure(study(), runs, CPU)
    assert "blind:bim was begun here before, so it is measured too, and not reported" in capsys.readouterr().err
    rows = json.loads((runs / "results.json").read_text())["rows"]
    assert [row["attack"] for row in rows if row["threat"] == "blind"] == ["FGSM"]


def test_measure__the_control_without_a_purifier_is_measured_once_and_named_so(study, content, tmp_path, evaluated):
    content["purifiers"]["maep"] = {"spec": "maep_conv_patch4_32_cifar10", "trained_on": "CIFAR-10"}
    grid = content["grids"].pop("blind") | {"threats": ["blind:fgsm"]}
    content["grids"] = {
        "small": grid | {"purifier": ["blur", "median"], "policy": "resize:16"},
        "large": grid | {"purifier": "maep", "policy": "resize"},  # the size of its training
        "further": grid | {"purifier": "median", "policy": "resize:32", "threats": ["whitebox:fgsm"]},
    }
    runs = tmp_path / "runs" / "study"
    run.measure(study(), runs, CPU)
    run.measure(study(), runs, CPU, study(["further"]))
    assert evaluated == ["none", "none"]
    rows = json.loads((runs / "results.json").read_text())["rows"]
    found = [(row["purifier"], row["policy"], row["threat"]) for row in rows if row["purifier"]]
    assert found == [
        *(("none", "resize:16", threat) for threat in ("none", "blind", "blind_worst")),
        *(("none", "resize:32", threat) for threat in ("none", "blind", "whitebox", "blind_worst", "worst")),
    ]
    with (runs / "results.csv").open() as stream:
        assert {row["trained_on"] for row in csv.DictReader(stream) if row["purifier"]} == {"nothing"}
    report = (runs / "report.md").read_text()
    assert "The best of them is none @ resize:32 before small" in report
    assert len([line for line in report.splitlines() if line.startswith("| none | nothing | resize:")]) == 2
    cells = [path.parent.joinpath("report.md").read_text() for path in runs.glob("*/results.json")]
    assert all("none (policy resize:" in text and "Trained on: nothing (purifier)." in text for text in cells)


def test_measure__a_control_on_file_stays_where_it_is_and_is_named_anew(study, content, tmp_path, evaluated):
    content["grids"]["blind"] |= {"purifier": ["blur", "median"], "policy": "resize:16"}
    runs = tmp_path / "runs" / "study"
    second = study().cells[1]
    materials = run.Materials(study(), CPU)
    named = run.Subject(dataset="digits", classifier="small", purifier="median", policy="resize:16")
    run.evaluate(*materials.bench(second), second.plan, runs / second.folder, subject=named, sanity=0)
    run.measure(study(), runs, CPU)
    assert evaluated == ["median"]
    rows = json.loads((runs / "results.json").read_text())["rows"]
    assert {row["purifier"] for row in rows} == {None, "none"}


def test_measure__attacks_a_bare_classifier_once_for_all_purifiers(study, tmp_path, monkeypatch):
    made = []
    real = run.evaluate.__globals__["_Engine"]._attack
    monkeypatch.setattr(
        "maep_lightning.evaluation.engine._Engine._attack",
        lambda self, rung, *rest: made.append(rung.name) or real(self, rung, *rest),
    )
    run.measure(study(), tmp_path / "runs" / "study", CPU)
    assert made.count("blind:fgsm") == made.count("blind:bim") == 1


@pytest.fixture
def other_weights(content):
    """Trains the classifier of the study anew, so to say."""

    def replace():
        torch.manual_seed(1)
        save_classifier(create_classifier("resnet8", 10), Path(content["classifiers"]["small"]), "resnet8", 10)

    return replace


@pytest.mark.parametrize("preview", [False, True])
def test_measure__changed_weights_are_found_before_anything_is_measured(
    study, content, tmp_path, evaluated, other_weights, preview
):
    runs = tmp_path / "runs" / "study"
    content["grids"]["blind"]["purifier"] = "median"
    run.measure(study(), runs, CPU)
    other_weights()
    content["grids"]["blind"]["purifier"] = ["blur", "median"]
    with pytest.raises(ValueError, match=r"median @ native before small.*classifier_weights: was"):
        run.measure(study(), runs, CPU, preview=preview)
    assert evaluated == ["median"]


def test_reports__leave_out_what_was_measured_with_other_weights(study, content, tmp_path, other_weights, capsys):
    runs, grid = tmp_path / "runs" / "study", content["grids"]["blind"]
    content["grids"] = {name: grid | {"purifier": name} for name in ("blur", "median")}
    run.measure(study(), runs, CPU, study(["median"]))
    run.measure(study(), runs, CPU, study(["blur"]))

    def reported():
        return {row["purifier"] for row in json.loads((runs / "results.json").read_text())["rows"]}

    assert reported() == {None, "blur", "median"}
    other_weights()
    (cell,) = study(["blur"]).cells
    shutil.rmtree(runs / cell.folder)
    run.measure(study(), runs, CPU, study(["blur"]))
    assert reported() == {None, "blur"}
    assert "1 cells on file are of other weights or images, and no part of the report: med" in capsys.readouterr().err


def test_data_set_of_ones_own__is_measured_and_verified(study, content, squares, tmp_path, capsys):
    save_classifier(create_classifier("resnet8", 2), tmp_path / "small.safetensors", "resnet8", 2)
    content["datasets"] = {"squares": {"dataset": "python:squares:squares", "root": str(tmp_path / "my-data")}}
    content["grids"]["blind"] |= {"dataset": "squares", "purifier": "blur"}
    runs = tmp_path / "runs" / "study"
    run.measure(study(), runs, CPU)
    squares()
    main(["verify", str(runs / study().cells[0].folder)])
    assert "verified" in capsys.readouterr().out


def test_verify__reads_no_more_images_than_the_cell_has(study, content, tmp_path, monkeypatch, capsys):
    content["grids"]["blind"]["purifier"] = "blur"
    runs, read = tmp_path / "runs" / "study", []
    run.measure(study(), runs, CPU)
    real = ImageSource.decoded
    monkeypatch.setattr(ImageSource, "decoded", lambda self, data: read.append(len(data.labels)) or real(self, data))
    main(["verify", str(runs / study().cells[0].folder)])
    assert "verified" in capsys.readouterr().out
    assert read == [4]


def test_measure__warns_once_of_a_classifier_that_does_not_get_its_images_as_it_was_trained_to(
    study, content, tmp_path, monkeypatch, capsys
):
    checks = []

    def check(classifier, images, labels, more):
        assert [len(part) for part in more()] == [5, 5]
        checks.append(len(images))
        return NormalizationCheck(len(images), 0, {}, None, ("add norm=255.",))

    monkeypatch.setattr(run, "check_normalization", check)
    monkeypatch.setattr(run, "check_framing", lambda classifier, framing: ("give --data.crop_pct 0.95.",))
    content["grids"]["more"] = content["grids"]["blind"] | {"n": 5}
    for preview in (True, False, False):
        run.measure(study(), tmp_path / "runs" / "study", CPU, preview=preview)
    assert checks == [5, 5]  # nothing is left for the third
    said = capsys.readouterr().err
    assert said.count("[transfer] warning: small on digits: add norm=255.\n") == 2
    assert said.count("crop_pct 0.95. In a study, --data.crop_pct is the data set's `crop_pct`.\n") == 2


def test_preview__says_what_it_costs_and_measures_nothing(study, tmp_path, evaluated, capsys):
    run.measure(study(), tmp_path / "runs" / "study", CPU, preview=True)
    said = capsys.readouterr().err
    assert "2 cells, 0 of them on file; at most about" in said
    assert said.count("before small on digits (4 images), Linf 8/255") == 2
    assert evaluated == []


def test_optional_grids__are_skipped_until_their_files_are_there(study, content, tmp_path, evaluated, capsys):
    content["datasets"] |= {"cifar100": None, "photos": {"dataset": "folder", "folder": "photos", "image_size": 32}}
    content["grids"]["later"] = content["grids"]["blind"] | {"dataset": ["cifar100", "photos"], "purifier": "blur"}
    with pytest.raises(ValueError, match="blur @ native before small on cifar100"):
        run.measure(study(), tmp_path / "runs" / "study", CPU)
    content["grids"]["later"]["optional"] = True
    run.measure(study(), tmp_path / "runs" / "study", CPU)
    said = capsys.readouterr().err
    assert "1 cells skipped, cifar100: " in said
    assert "1 cells skipped, photos: " in said
    assert evaluated == ["blur", "median"]
    for name in "ab":
        (tmp_path / "data" / "photos" / name).mkdir(parents=True)
        for number in range(3):
            pixels = np.full((32, 32, 3), 60 * number, np.uint8)
            Image.fromarray(pixels).save(tmp_path / "data" / "photos" / name / f"{number}.png")
    run.measure(study(), tmp_path / "runs" / "study", CPU)
    assert evaluated == ["blur", "median", "blur"]
    # The limit takes the classes evenly.
    labels = run.Materials(study(), CPU).images("photos", 4).labels
    assert labels.bincount().tolist() == [2, 2]


@pytest.fixture
def without_cifar(content, fake_cifar10, tmp_path, monkeypatch):
    """Takes CIFAR-10 out of the data folder of a study of it; the folders that it was downloaded into since."""
    (fake_cifar10.root / "cifar-10-batches-py").rename(tmp_path / "published")
    content["datasets"] = {"cifar10": None}
    content["grids"]["blind"] |= {"dataset": "cifar10", "purifier": "blur"}
    places = []

    def download(self):
        places.append(Path(self.root))
        shutil.copytree(tmp_path / "published", Path(self.root) / self.base_folder, dirs_exist_ok=True)

    monkeypatch.setattr(datasets.CIFAR10, "download", download)
    return places


@pytest.mark.parametrize("left", [None, "test_batch"])
def test_data_set__that_is_missing_is_downloaded_into_the_data_folder(
    study, without_cifar, evaluated, tmp_path, capsys, left
):
    if left:  # of a download that was broken off
        (tmp_path / "data" / "cifar-10-batches-py").mkdir(parents=True)
        shutil.copy(tmp_path / "published" / left, tmp_path / "data" / "cifar-10-batches-py")
    for _ in range(2):
        run.measure(study(), tmp_path / "runs" / "study", CPU)
    assert evaluated == ["blur"]
    assert without_cifar == [tmp_path / "data"]
    said = capsys.readouterr().err
    assert (
        said.count(f"cifar10 is not in {tmp_path / 'data'}, and is fetched into it if it can be: https://www.cs.") == 1
    )
    assert "cifar-10-python.tar.gz (170 MB)" in said


def test_data_set__of_optional_grids_is_not_downloaded(study, content, without_cifar, tmp_path, capsys):
    content["grids"]["blind"]["optional"] = True
    content["grids"]["needed"] = content["grids"]["blind"] | {"dataset": "digits", "optional": False}
    content["datasets"]["digits"] = None
    run.measure(study(), tmp_path / "runs" / "study", CPU)
    said = capsys.readouterr().err
    assert "1 cells skipped, cifar10: CIFAR10 was not found" in said
    assert "--data.init_args.download is what every grid that is not `optional` does where files are missing" in said
    assert without_cifar == []


def test_data_set__that_cannot_be_downloaded_is_said_with_advice_that_fits(
    study, without_cifar, tmp_path, evaluated, monkeypatch
):
    def no_network(self):
        raise OSError("no route to host")

    monkeypatch.setattr(datasets.CIFAR10, "download", no_network)
    with pytest.raises(ValueError, match=r"on cifar10 .*download failed: no route to host") as found:
        run.measure(study(), tmp_path / "runs" / "study", CPU)
    assert "init_args.download" not in str(found.value)
    assert "MAEP_DATA_DIR" in str(found.value)
    assert "--data.init_args.root is the data set's `root`" in str(found.value)
    assert evaluated == []


def test_cifar100__comes_from_its_files_to_a_row(study, content, tmp_path, fake_cifar100):
    torch.manual_seed(0)
    path, trained = tmp_path / "hundred.safetensors", create_classifier("resnet8", 100)
    images = torch.from_numpy(fake_cifar100.pixels["test"][:4].reshape(4, 3, 32, 32)) / 255
    labels = torch.tensor(fake_cifar100.labels["test"][:4])
    optimizer = torch.optim.Adam(trained.parameters(), 0.01)
    for _ in range(30):  # four images by heart, in the statistics of which it is judged
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(trained(images), labels).backward()
        optimizer.step()
    save_classifier(trained, path, "resnet8", 100)
    content["classifiers"]["small"] = str(path)
    content["datasets"] = {"cifar100": None}
    content["purifiers"] = {"identity": "identity", "blur": "gaussian:0.5"}
    content["grids"]["blind"] |= {"dataset": "cifar100", "purifier": ["identity", "blur"], "optional": True}
    content["grids"]["blind"]["threats"] = ["blind:fgsm", "whitebox:apgd-ce"]
    runs = tmp_path / "runs" / "study"
    run.measure(study(), runs, CPU)
    with torch.no_grad():
        right = float((trained.eval()(images).argmax(1) == labels).float().mean())
    assert right > 0.5  # of a hundred classes
    rows = json.loads((runs / "results.json").read_text())["rows"]
    assert {(row["dataset"], row["n"]) for row in rows} == {("cifar100", 4)}
    assert {row["acc_undefended_clean"] for row in rows} == {right}
    bare = {row["threat"]: row["acc_robust"] for row in rows if row["purifier"] == "identity"}
    assert bare["none"] == right
    assert bare["worst"] <= bare["blind"] <= right
    with (runs / "results.csv").open() as stream:
        assert {row["purifier"] for row in csv.DictReader(stream)} == {"", "identity", "blur"}
    report = (runs / "report.md").read_text()
    assert len([line for line in report.splitlines() if line.startswith(("| identity |", "| blur |"))]) == 2
    assert "![accuracy by system and attack](heatmap-cifar100.png)" in report


@pytest.mark.parametrize("purifier", ["maep_conv_patch4_32_cifar10", "noise:8/255,seed=0+maep_conv_patch4_32_cifar10"])
def test_policies__of_any_purifier_are_a_row(purifier, tmp_path, monkeypatch, capsys):
    path = tmp_path / "image.png"
    Image.fromarray(np.random.RandomState(0).randint(0, 256, (80, 80, 3), dtype=np.uint8)).save(path)
    monkeypatch.setattr("sys.argv", ["policies.py", purifier, "tile", "64", "2", str(path)])
    policies.main()
    policy, side, chunk, seconds, _, *seams = capsys.readouterr().out.strip("| \n").split(" | ")
    assert (policy, side, chunk) == ("tile", "64", "2")
    assert float(seconds) >= 0
    assert all(float(seam) > 0 for seam in seams)


@pytest.mark.parametrize("name", ["gpu", "cuda:99", "meta:x"])
def test_study__a_device_that_cannot_be_used_is_said_before_anything_is_loaded(name):
    with pytest.raises(ValueError, match=f"--device {name} cannot be used here"):
        run.usable_device(name)


@pytest.mark.parametrize(("kind", "expected"), [("mps", "mps"), (None, "cpu")])
def test_study__takes_an_accelerator_of_any_kind_if_there_is_one(monkeypatch, kind, expected):
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: kind is not None)
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda *args: torch.device(kind))
    assert run.default_device() == expected


@pytest.fixture
def command(study, tmp_path, monkeypatch):
    """Runs the study as one does in a shell; what it ends with."""

    def end(*words):
        study()
        line = ["run", *(words or [str(tmp_path / "study.yaml")]), "--runs", str(tmp_path / "runs" / "study")]
        monkeypatch.setattr("sys.argv", [*line, "--device", "cpu"])
        with pytest.raises(SystemExit) as found:
            run.main()
        assert "\n" not in found.value.code
        return found.value.code

    return end


def test_command__a_folder_or_a_missing_file_in_place_of_a_study_is_said_in_a_line(command, tmp_path):
    assert command(str(tmp_path)) == f"[transfer] {tmp_path} is a folder: give the YAML file of a study."
    assert command(str(tmp_path / "no.yaml")) == f"[transfer] No such file or directory: {tmp_path / 'no.yaml'}"


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (LedgerError("noise.safetensors is damaged: delete it and run again."), "noise.safetensors is damaged: delete"),
        (OSError(28, "could not write audit.csv (No space left on device)"), "could not write audit.csv (No space"),
        (ValueError("no gradient flows"), "no gradient flows"),
    ],
)
def test_command__what_stops_a_cell_is_said_in_a_line_that_names_it(command, monkeypatch, error, said):
    def fail(*args, **kw):
        raise error

    monkeypatch.setattr(run, "evaluate", fail)
    assert command().startswith(f"[transfer] blur @ native before small on digits (4 images), Linf 8/255: {said}")


@pytest.mark.faults
def test_command__a_damaged_file_of_a_ledger_is_named(command, study, content, tmp_path):
    runs = tmp_path / "runs" / "study"
    content["grids"]["blind"]["purifier"] = "blur"
    run.measure(study(), runs, CPU)
    (cell,) = study().cells
    (runs / cell.folder / "results.json").unlink()
    for path in (runs / cell.folder / "ledger").rglob("*.safetensors"):
        path.write_bytes(path.read_bytes()[:-1])
    assert command().startswith("[transfer] blur @ native before small on digits")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("Give another run_dir.", "Give another run_dir. In a study, run_dir is a folder below `--runs`."),
        (
            "Add norm=0.5 to classifier_name, see --data.label_space or --data.init_args.folder.",
            "Add norm=0.5 to classifier_name, see --data.label_space or --data.init_args.folder. In a study,"
            " classifier_name is the classifier's `name` and --data.label_space is the data set's `label_space`"
            " and --data.init_args.folder is the data set's `folder`.",
        ),
        ("There is no file a/run_dir_1/x.safetensors.", "There is no file a/run_dir_1/x.safetensors."),
    ],
)
def test_messages__say_what_options_are_called_in_a_study(text, said):
    assert run.in_study(text) == said


def test_reports__no_blind_figure_is_a_headline(study, content, tmp_path):
    content["grids"]["white"] = content["grids"]["blind"] | {"purifier": "blur", "threats": ["whitebox:apgd-ce"]}
    runs = tmp_path / "runs" / "study"
    run.measure(study(), runs, CPU)
    rows = json.loads((runs / "results.json").read_text())["rows"]
    worst = [(row["purifier"], row["threat"]) for row in rows if "worst" in row["threat"]]
    assert worst == [("blur", "blind_worst"), ("blur", "worst"), ("median", "blind_worst")]
    assert len([row for row in rows if row["purifier"] is None]) == 1
    report = (runs / "report.md").read_text()
    assert "measured for 1 of 2 systems" in report
    lines = {line.split(" | ")[0].strip("| "): line for line in report.splitlines() if line.startswith("| ")}
    assert lines["blur"].split(" | ")[1] == "paint"
    assert lines["median"].endswith("| not measured | not measured |")
    assert "not measured |" not in lines["blur"].split("apgd-ce")[1]
    with (runs / "results.csv").open() as stream:
        spread = list(csv.DictReader(stream))
    assert [row["acc_robust"] for row in spread] == [str(row["acc_robust"]) for row in rows]
    assert (runs / "heatmap-digits.png").stat().st_size > 0


def test_reports__what_a_purifier_was_trained_on_is_in_its_file_unless_the_study_says_it(study, content, tmp_path):
    for name, provenance in (("mine", {"data": "birds"}), ("other", {"data": "cats"}), ("silent", None)):
        torch.manual_seed(0)
        purifier = create_purifier("maep_conv_patch4_32", width=16, depth=1, heads=2, decoder_width=16, decoder_heads=2)
        purifier.save_pretrained(tmp_path / f"{name}.safetensors", provenance)
    mine, other, silent = (f"{tmp_path / name}.safetensors" for name in ("mine", "other", "silent"))
    origins = {
        mine: "birds",
        f"noise:8/255,seed=0+{mine}": "birds",
        f"noise:8/255,seed=0+mix:0.5,start={mine},end={other}": "birds and cats",
        silent: "not stated",
        f"{silent}.lost": "not stated",
        "noise:8/255,seed=0+median:3": "nothing",
        "python:torch:relu": "not stated",
    }
    for spec, origin in origins.items():
        assert Trained(spec).origin == origin
        assert Trained(spec, "paint").origin == "paint"
    content["purifiers"] = {"mine": f"noise:8/255,seed=0+{mine}", "told": {"spec": mine, "trained_on": "paint"}}
    content["purifiers"]["median"] = "median:3"
    said = {"mine": "birds", "told": "paint", "median": "nothing"}
    content["grids"]["blind"] |= {"purifier": [*said], "threats": "none"}
    runs = tmp_path / "runs" / "study"
    run.measure(study(), runs, CPU)
    report = (runs / "report.md").read_text()
    lines = [line.strip("| ").split(" | ")[:2] for line in report.splitlines() if line.startswith("| ")]
    assert {name: origin for name, origin in lines if name != "purifier"} == said
    with (runs / "results.csv").open() as stream:
        assert {row["purifier"]: row["trained_on"] for row in csv.DictReader(stream) if row["purifier"]} == said
    for cell in study().cells:
        text = (runs / cell.folder / "report.md").read_text()
        assert f"Trained on: {said[cell.purifier]} (purifier)." in text


def test_reports__the_worst_of_all_blind_says_of_how_many_attacks_it_is(study, content, tmp_path, monkeypatch):
    figures = []
    monkeypatch.setattr(
        "experiments.transfer.heatmap.FigureCanvasAgg",
        lambda figure: figures.append(figure) or FigureCanvasAgg(figure),
    )
    grid = content["grids"].pop("blind")
    content["grids"] = {
        "one": grid | {"purifier": "blur", "threats": ["blind:fgsm"]},
        "two": grid | {"purifier": "median", "threats": ["noise", "blind:fgsm", "blind:bim", "whitebox:fgsm"]},
    }
    runs = tmp_path / "runs" / "study"
    run.measure(study(), runs, CPU)
    report = (runs / "report.md").read_text()
    lines = {
        line.split(" | ")[0].strip("| "): line.split(" | ") for line in report.splitlines() if "| native |" in line
    }
    assert lines["blur"][8].endswith(", of 1 attack")
    assert lines["median"][8].endswith(", of 2 attacks")
    assert all("attack" not in cell for line in lines.values() for cell in (*line[:8], line[10]))
    axis = figures[-1].axes[0]
    column = [label.get_text() for label in axis.get_xticklabels()].index("worst of\nall blind")
    starred = [text.get_position() for text in axis.texts if text.get_text().endswith("*")]
    assert starred == [(column, 0)]
    with (runs / "results.csv").open() as stream:
        assert "attacks" not in csv.DictReader(stream).fieldnames


def test_reports__the_worst_of_all_blind_is_counted_image_by_image(tmp_path):
    cell = Cell(
        "digits", "c", "p", "native", "Linf", "8/255", 4, 4, 0, threats=("none", "blind:fgsm", "blind:bim", "bpda")
    )
    manifest = Manifest({"threats": list(cell.threats)})
    manifest.pin(tmp_path)
    row = {"purifier": "p", "acc_robust": 0.0, "acc_undefended_clean": 1.0, "n": 4, "threat": "worst", "attack": ""}
    (tmp_path / "results.json").write_text(json.dumps({"rows": [row], "run": {"commit": "abc"}, "plan": manifest.hash}))
    fell = [(0, "none", "CLEAN_WRONG"), (1, "blind:fgsm", "BROKEN"), (1, "blind:bim", "BROKEN"), (2, "bpda", "BROKEN")]
    lines = [f"{index},{rung},{status}" for index, rung, status in [*fell, (3, "blind:bim", "ROBUST")]]
    (tmp_path / "audit.csv").write_text("\n".join(["index,rung,status", *lines]) + "\n")
    blind, worst = Measured.read(cell, tmp_path).rows
    assert (blind["threat"], blind["acc_robust"], worst["threat"]) == ("blind_worst", 0.5, "worst")
    assert (blind["attacks"], "attacks" in worst) == (2, False)
    assert blind["ci95"] == pytest.approx([0.150039, 0.849961], abs=1e-6)  # Wilson's formula by hand, 2 of 4


@pytest.mark.kill
def test_reports__leave_out_a_cell_that_was_stopped_while_further_threats_were_measured(study, content, tmp_path):
    content["grids"]["blind"]["purifier"] = "blur"
    content["grids"]["white"] = content["grids"]["blind"] | {"threats": ["whitebox:apgd-ce"]}
    runs = tmp_path / "runs" / "study"
    run.measure(study(), runs, CPU, study(["blind"]))
    (cell,) = study().cells
    values = Manifest.read(runs / cell.folder).values
    Manifest(values | {"threats": list(cell.threats)}).pin(runs / cell.folder)
    assert Measured.read(cell, runs / cell.folder) is None
    run.measure(study(), runs, CPU)
    assert Measured.read(cell, runs / cell.folder).defended[-1]["threat"] == "worst"


def test_reports__a_system_shows_the_figures_with_most_images_and_says_their_number():
    row = {"purifier": "p", "acc_robust": 0.5, "acc_clean": 0.9, "acc_undefended_clean": 1.0, "ci95": [0.4, 0.6]}
    many = Cell("digits", "c", "p", "native", "Linf", "8/255", 200, 4, 0, threats=("none", "blind"))
    few = Cell("digits", "c", "p", "native", "Linf", "8/255", 100, 4, 0, threats=("none", "blind", "whitebox"))
    clean, blind = {"threat": "none", "attack": "none"}, {"threat": "blind", "attack": "AutoAttack standard"}
    white, worst = {"threat": "whitebox", "attack": "AutoAttack standard"}, {"threat": "worst", "attack": "all"}
    cells = [
        Measured(many, tuple(row | {"n": 200} | kind for kind in (clean, blind))),
        Measured(few, tuple(row | {"n": 100, "acc_robust": 0.1} | kind for kind in (clean, blind, white, worst))),
    ]
    study = read_study(STUDIES[0])
    study.purifiers["p"] = study.purifiers["maep"]
    line = table(study, {cells[0].key: cells})[-1]
    assert "| 200 |" in line
    assert "50.0 % (40.0 to 60.0), keeps 50.0 %" in line
    assert line.count("10.0 % (40.0 to 60.0, n = 100), keeps 10.0 %") == 2
    assert headline(cells)["n"] == 100
    assert headline(cells[:1]) is None


def test_reports__of_several_cells_of_a_system_the_worst_counts_not_that_with_most_images():
    row = {"purifier": "p", "acc_clean": 0.9, "acc_undefended_clean": 1.0, "ci95": [0.0, 1.0]}

    def measured(n, left, attacks):
        cell = Cell("digits", "c", "p", "native", "Linf", "8/255", n, 4, 0, threats=("none", *attacks, "bpda"))
        kinds = ("none", ""), ("blind_worst", f"worst of {attacks}"), ("worst", f"worst of {attacks}, bpda")
        more = {"n": n, "acc_robust": left, "attacks": len(attacks)}
        return Measured(cell, tuple(row | more | {"threat": threat, "attack": title} for threat, title in kinds))

    weak, strong = measured(200, 0.5, ["blind"]), measured(100, 0.25, ["blind", "blind:mi-fgsm"])
    fewer = measured(50, 0.125, ["blind"])  # the attacks of the first on fewer images say less
    cells = [weak, strong, fewer]
    study = read_study(STUDIES[0])
    study.purifiers["p"] = study.purifiers["maep"]
    assert headline(cells)["acc_robust"] == 0.25
    *_, worst, _, head = table(study, {weak.key: cells})[-1].removesuffix(" |").split(" | ")
    assert head == "25.0 % (0.0 to 100.0, n = 100), keeps 25.0 %"
    assert worst == f"{head}, of 2 attacks"


def test_reports__the_headline_is_never_above_another_figure_of_its_line():
    row = {"purifier": "p", "acc_clean": 0.9, "acc_undefended_clean": 1.0, "ci95": [0.0, 1.0]}

    def measured(threats, *kinds):
        cell = Cell("digits", "c", "p", "native", "Linf", "8/255", 8, 4, 0, threats=("none", *threats))
        rows = (row | {"n": 8, "threat": kind, "attack": title, "acc_robust": left} for kind, title, left in kinds)
        return Measured(cell, tuple(rows))

    mild = measured(["square"], ("none", "", 0.9), ("square", "square (2 queries)", 0.75))
    harsh = measured(["blind:fgsm"], ("none", "", 0.9), ("blind", "FGSM", 0.0), ("blind_worst", "worst of FGSM", 0.0))
    assert headline([harsh]) is None
    assert headline([mild])["acc_robust"] == 0.75
    assert headline([mild, harsh])["acc_robust"] == headline([harsh, mild])["acc_robust"] == 0.0


def test_reports__of_a_classifier_that_draws_noise_are_written(study, content, tmp_path, monkeypatch):
    (tmp_path / "drawing.py").write_text(
        "import torch\n\n\ndef make():\n    return lambda images: images.mean((2, 3)).repeat(1, 4)[:, :10]"
        " + 0.01 * torch.randn(len(images), 10)\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    content["classifiers"]["small"] = {"source": "python:drawing:make", "num_classes": 10}
    content["grids"]["blind"] |= {"purifier": "blur", "threats": ["blind:fgsm", "whitebox:fgsm"]}
    runs = tmp_path / "runs" / "study"
    run.measure(study(), runs, CPU)
    rows = json.loads((runs / "results.json").read_text())["rows"]
    assert {row["threat"] for row in rows if "readings" in row} == {"none", "blind", "whitebox"}
    with (runs / "results.csv").open() as stream:
        assert len(list(csv.DictReader(stream))) == len(rows)


def test_reports__the_worst_of_all_blind_has_no_readings_of_one_attack(study, content, tmp_path):
    content["purifiers"]["blur"] = "noise:8/255"
    content["grids"]["blind"]["purifier"] = "blur"
    runs = tmp_path / "runs" / "study"
    run.measure(study(), runs, CPU)
    rows = json.loads((runs / "results.json").read_text())["rows"]
    assert [row["threat"] for row in rows if "readings" in row] == ["none", "blind", "blind"]
    assert rows[-1]["threat"] == "blind_worst"


@pytest.mark.parametrize("order", [1, -1])
def test_reports__of_the_same_attack_in_chunks_of_two_sizes_the_lower_figure_counts(study, content, tmp_path, order):
    grid = content["grids"]["blind"] | {"purifier": "blur", "threats": ["blind:fgsm"]}
    content["grids"] = {str(size): grid | {"chunk_size": size} for size in (2, 4)[::order]}
    runs = tmp_path / "runs" / "study"
    run.measure(study(), runs, CPU)
    small = next(runs / cell.folder for cell in study().cells if cell.chunk_size == 2)
    stored = json.loads((small / "results.json").read_text())
    blind = next(row for row in stored["rows"] if row["threat"] == "blind")
    blind |= {"acc_robust": -1.0, "ci95": [-1.0, -1.0]}  # lower than any
    (small / "results.json").write_text(json.dumps(stored))
    run.measure(study(), runs, CPU)
    rows = json.loads((runs / "results.json").read_text())["rows"]
    assert [row["acc_robust"] for row in rows if row["threat"] == "blind"] == [-1.0]
    cells = [Measured.read(cell, runs / cell.folder) for cell in study().cells]
    assert best_rows(cells)["blind", "FGSM"]["acc_robust"] == -1.0


@pytest.fixture
def open_rows():
    """Makes a measured cell of rows by threat: figure, low and high end."""

    def make(n=4, **rows):
        names = {"knowing": ("none", "blind:fgsm", "whitebox:apgd-ce"), "blind": ("none", "blind:fgsm")}
        threats = names["knowing" if "whitebox" in rows else "blind"]
        cell = Cell("digits", "c", "p", "native", "Linf", "8/255", n, 4, 0, threats=threats)
        system = {"purifier": "p", "n": n, "acc_clean": 0.9, "acc_undefended_clean": 1.0}
        found = {"none": (0.9, 0.8, 1.0)} | rows
        return Measured(
            cell,
            tuple(
                system
                | {"threat": threat, "attack": threat, "acc_robust": left, "ci95": ends, "complete": left is not None}
                | ({"attacks": 1} if threat == "blind_worst" else {})
                for threat, (left, *ends) in found.items()
            ),
        )

    return make


def test_reports__a_headline_that_an_error_left_open_is_no_blind_figure(open_rows):
    unknown = (None, 0.0, 0.75)
    cell = open_rows(blind=(0.7, 0.6, 0.8), whitebox=unknown, blind_worst=(0.7, 0.6, 0.8), worst=unknown)
    row = headline([cell])
    assert (row["acc_robust"], row["ci95"], row["threat"]) == (None, [0.0, 0.75], "worst")
    study = read_study(STUDIES[0])
    study.purifiers["p"] = study.purifiers["maep"]
    assert table(study, {cell.key: [cell]})[-1].endswith("| incomplete, within 0.0 to 75.0 |")
    assert "measured for 0 of 1 systems" in honesty({cell.key: [cell]})
    # Nor does a blind figure of another cell stand in for it, and no bound lies above its interval.
    lower = open_rows(blind=(0.5, 0.4, 0.6), blind_worst=(0.5, 0.4, 0.6), n=8)
    assert headline([lower, cell])["ci95"] == [0.0, 0.6]


def test_reports__an_error_that_another_attack_settled_leaves_the_headline_a_figure(open_rows):
    settled = open_rows(whitebox=(None, 0.0, 0.75), worst=(0.25, 0.1, 0.5))
    assert headline([settled])["acc_robust"] == 0.25
    none_left = open_rows(n=8, whitebox=(0.0, 0.0, 0.1), worst=(0.0, 0.0, 0.1))
    none_left = Measured(none_left.cell, tuple(row | {"attack": "other"} for row in none_left.rows))
    still_open = open_rows(whitebox=(None, 0.0, 0.75), worst=(None, 0.0, 0.75))
    assert headline([none_left, still_open])["acc_robust"] == 0.0


def test_reports__an_incomplete_worst_of_all_blind_does_not_lose_to_a_weaker_one(open_rows):
    weak = open_rows(blind=(0.9, 0.8, 1.0), blind_worst=(0.9, 0.8, 1.0))
    strong = open_rows(blind=(None, 0.1, 0.5), blind_worst=(None, 0.1, 0.5))
    strong = Measured(strong.cell, tuple(row | {"attack": f"strong {row['attack']}"} for row in strong.rows))
    study = read_study(STUDIES[0])
    study.purifiers["p"] = study.purifiers["maep"]
    line = table(study, {weak.key: [weak, strong]})[-1]
    assert "| incomplete, within 10.0 to 50.0, of 1 attack | not measured | not measured |" in line
    rows = {row["attack"]: row for row in (*weak.rows, *strong.rows) if row["threat"] == "blind_worst"}
    assert lowest(rows.values())["acc_robust"] is None


def test_reports__the_worst_of_several_budgets_are_rows_of_their_own(study, content, tmp_path):
    content["grids"] = {
        str(steps): content["grids"]["blind"]
        | {"purifier": "blur", "threats": ["blind:fgsm", "whitebox:apgd-ce"], "budget": {"apgd_steps": steps}}
        for steps in (1, 3)
    }
    runs = tmp_path / "runs" / "study"
    run.measure(study(), runs, CPU)
    rows = json.loads((runs / "results.json").read_text())["rows"]
    worst = {row["attack"]: row["acc_robust"] for row in rows if row["threat"] == "worst"}
    assert [title.rpartition(" (")[2] for title in worst] == ["apgd_steps 1)", "apgd_steps 3)"]
    cells = [Measured.read(cell, runs / cell.folder) for cell in study().cells]
    assert headline(cells)["acc_robust"] == min(worst.values())


def test_reports__a_single_attack_on_the_purifier_is_the_headline(study, content, tmp_path):
    content["grids"]["blind"] |= {"purifier": "blur", "threats": ["whitebox:apgd-ce"]}
    runs = tmp_path / "runs" / "study"
    run.measure(study(), runs, CPU)
    (cell,) = study().cells
    assert headline([Measured.read(cell, runs / cell.folder)])["threat"] == "whitebox"
    report = (runs / "report.md").read_text()
    assert "measured for 1 of 1 systems" in report
    *_, white, head = next(line for line in report.splitlines() if line.startswith("| blur")).split(" | ")
    assert white == f"{head.removesuffix(' |')} (apgd-ce (2 steps))"


def test_heatmap__has_a_column_for_every_threat_of_a_study(tmp_path):
    threats = {*get_args(Threat), "worst"} - {"transfer"}
    rows = {(name, "a"): {"threat": name, "attack": "a", "acc_robust": 0.5, "n": 4} for name in threats}
    draw_heatmap("digits", {("digits", "Linf", "8/255", "p", "native", "c"): rows}, tmp_path / "map.png")
    assert (tmp_path / "map.png").stat().st_size > 0


def test_heatmap__columns_keep_budgets_that_are_not_the_published_ones():
    titles = ["apgd-ce (100 steps)", "square (20 queries)", "PGD-40 x 5", "AutoAttack standard", "reduced apgd-ce (x)"]
    labels = [column_of({"threat": "blind", "attack": title})[1] for title in titles]
    assert labels == ["APGD-CE", "Square (20 queries)", "PGD-40 x 5", "AutoAttack", "reduced AutoAttack"]
