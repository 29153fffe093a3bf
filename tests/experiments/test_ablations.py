"""The engine of the ablations: resumes, refuses what does not exist, and counts as numpy does."""

import csv
import json
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import yaml
from torch import nn

ROOT = Path(__file__).parents[2]
STUDY = ROOT / "experiments" / "ablations"
sys.path.insert(0, str(STUDY))  # as Python does for the script

import ablate  # noqa: E402
import cells  # noqa: E402
import judging  # noqa: E402
from summary import summarise  # noqa: E402

from maep_lightning import cli  # noqa: E402
from maep_lightning.attacks.threat import Epsilon  # noqa: E402
from maep_lightning.models.classifiers import create_classifier, save_classifier  # noqa: E402

TABLES = sorted(path.stem for path in (STUDY / "tables").glob("*.yaml"))
SCALES = [STUDY / "scale" / f"{name}.yaml" for name in ("digits", "demo", "cpu")]
TINY = {
    "configs": "configs/digits",
    "overlay": "experiments/ablations/scale/cell.yaml",
    "data": {"dataset": "digits", "train_limit": 32, "batch_size": 16},
    "networks": {"purifier": {"shape": "maep_conv_patch4_32", "width": 8, "depth": 1, "heads": 1, "decoder_width": 8,
                              "decoder_heads": 1, "refine_depth": 0}},
    "stages": {name: {"epochs": 1} for name in cells.TASKS},
    "judge": {"n": 6, "eps": "16/255", "blind": ["fgsm"], "whitebox": {"n": 2, "steps": 2, "targets": 1}},
}  # fmt: skip
TABLE = {
    "title": "Tiny",
    "question": "Does it run?",
    "base": {"pretrain": {}, "finetune": {"attack.steps": 1}},
    "rows": {"l1": {}, "l2": {"finetune": {"loss": "l2"}}},
}


@pytest.fixture
def study(tmp_path, monkeypatch):
    """A study of one table with two cells; returns how to run it, and the stages that the last run trained."""
    for name, content in {"tables/tiny.yaml": TABLE, "scale/tiny.yaml": TINY}.items():
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).write_text(yaml.safe_dump(content))
    monkeypatch.setattr(ablate, "HERE", tmp_path)
    monkeypatch.setattr(ablate, "TABLES", tmp_path / "tables")
    monkeypatch.chdir(ROOT)
    fit, trained = cli.main, []

    def noted(words):
        trained.append(Path(words[words.index("--config") + 1]).stem)
        fit(words)

    monkeypatch.setattr(cli, "main", noted)

    def start():
        trained.clear()
        ablate.main(["tiny", "--scale", "tiny", "--seeds", "1", "--runs", str(tmp_path / "runs")])
        return list(trained)

    return tmp_path, start


def test_ablate__does_what_is_missing_and_nothing_else(study):
    folder, start = study
    assert start() == ["classifier", "pretrain", "finetune", "finetune"]
    judged = {file: file.stat().st_mtime_ns for file in (folder / "runs" / "cells").glob("*/results.json")}
    assert len(judged) == 2

    assert start() == []
    assert {file: file.stat().st_mtime_ns for file in judged} == judged

    undone, kept = judged
    undone.unlink()
    for mark in (folder / "runs" / "stages").glob("finetune-*/done.json"):
        mark.unlink()
    assert start() == ["finetune"]  # of the other cell nothing is asked for
    assert undone.exists()
    assert kept.stat().st_mtime_ns == judged[kept]
    rows = [json.loads(line.rstrip(",")) for line in (folder / "results/tiny/tiny.json").read_text().splitlines()[1:-1]]
    assert {(row["threat"], row["n"], row["split"]) for row in rows} == {
        ("none", 6, "validation"), ("blind", 6, "validation"), ("whitebox", 2, "validation"),
    }  # fmt: skip


def test_judge__attacks_anew_what_is_of_other_images_labels_networks_recipes_or_packages(tmp_path, monkeypatch):
    def kept():
        judge._attacked("fgsm", Epsilon("16/255"))
        return len(list((tmp_path / "blind").iterdir()))

    save_classifier(create_classifier("resnet8", 10), tmp_path / "classifier.safetensors", "resnet8", 10)
    victim = {"classifier": str(tmp_path / "classifier.safetensors")}
    judge = judging.Judge(victim, {"dataset": "digits", "val_size": 6}, tmp_path)
    assert (kept(), kept()) == (1, 1)
    judge.images = 1 - judge.images
    assert kept() == 2
    judge.labels = judge.labels.flip(0)
    assert kept() == 3
    judge.classifier = nn.Sequential(judge.classifier)
    assert kept() == 4
    monkeypatch.setitem(judging.SIMPLE, "fgsm", replace(judging.SIMPLE["fgsm"], step=0.5))
    assert kept() == 5
    monkeypatch.setattr(judging.fingerprint, "of_packages", lambda: {"torch": "another"})
    assert kept() == 6


def test_stage__is_named_after_its_options_not_after_the_folder_of_the_runs(tmp_path):
    def places(cell, runs):
        return [stage.place for stage in cells.chain(cell, TINY, 0, runs, {"classifier": "c.safetensors"})]

    base = cells.cells_of(TABLE)
    l1, l2 = (places(base[row, ""], tmp_path) for row in ("l1", "l2"))
    assert l1[0] == l2[0]
    assert l1[1] != l2[1]
    assert places(base["l1", ""], tmp_path / "moved") == l1


@pytest.mark.parametrize(
    ("cell", "message"),
    [
        ({"finetun": {}}, "unknown part 'finetun'; did you mean finetune"),
        ({"finetune": {"mask_ration": 0.5}}, "unknown option 'mask_ration'; did you mean mask_ratio"),
        ({"finetune": {"attack.step": 3}}, "unknown option 'attack.step'; did you mean attack.steps"),
        ({"finetune": {"loss.kind": "l1"}}, "unknown option 'loss.kind'; did you mean loss"),
        ({"network": {"patchsize": 8}}, "unknown option 'patchsize'; did you mean patch_size"),
        ({"judge": {"votes": 8}}, "unknown option 'votes'; known are n, eps"),
    ],
)
def test_check__names_table_row_and_nearest_option(cell, message):
    with pytest.raises(ValueError, match=message) as error:
        cells.check("tiny", {**TABLE, "rows": {"wrong one": cell}})
    assert "tiny.yaml, rows wrong one" in str(error.value)


def test_ablate__unknown_table_or_option_leaves_before_anything_is_trained(study, capsys):
    folder, start = study
    table = {**TABLE, "rows": {"a": {"finetune": {"los": "l2"}}}}
    (folder / "tables" / "tiny.yaml").write_text(yaml.safe_dump(table))
    with pytest.raises(SystemExit) as exit_:
        start()
    assert exit_.value.code == 2
    assert "did you mean loss?" in capsys.readouterr().err
    assert not (folder / "runs").exists()


@pytest.mark.parametrize("name", TABLES)
def test_tables__name_options_that_exist(name):
    ablate.read_tables([name])


@pytest.mark.parametrize("path", SCALES, ids=lambda path: path.stem)
def test_scales__name_options_that_exist(path):
    scale = yaml.safe_load(path.read_text())
    options = {name: settings.get("options", {}) for name, settings in scale["stages"].items() if name != "classifier"}
    networks = {name: {"network": {key: v for key, v in fields.items() if key != "shape"}}
                for name, fields in scale["networks"].items()}  # fmt: skip
    cells.check(path.stem, {"base": {**options, "judge": scale["judge"]}, "rows": networks})
    assert set(scale["stages"]) == set(cells.TASKS)
    assert (ROOT / scale["overlay"]).exists()


def test_summary__means_and_deviations_are_numpys(tmp_path):
    values = {"a": [0.5, 0.625, 0.875], "b": [0.25, 0.25, 0.75]}
    found = []
    for row, accuracies in values.items():
        for seed, accuracy in enumerate(accuracies):
            measured = {"threat": "blind", "attack": "FGSM", "acc_robust": accuracy, "acc_undefended_clean": 1.0}
            measured |= {"n": 8, "norm": "Linf", "eps": "16/255"}
            run = {"seconds": 1.0, "training_core_seconds": 2.0 + seed, "hardware": "a machine", "commit": "0123456789"}
            file = tmp_path / f"{row}{seed}.json"
            file.write_text(json.dumps({"schema": 1, "run": run, "rows": [measured]}))
            found.append((row, "", seed, file))
    summarise("tiny", TABLE, found, tmp_path / "results", "tiny")
    with (tmp_path / "results" / "tiny.csv").open() as stream:
        lines = [line for line in csv.DictReader(stream) if line["metric"] == "blind FGSM"]
    assert [float(line["mean"]) for line in lines] == pytest.approx([np.mean(v) for v in values.values()], abs=1e-4)
    assert [float(line["std"]) for line in lines] == pytest.approx(
        [np.std(v, ddof=1) for v in values.values()], abs=1e-4
    )
    a = values["a"]
    shown = f"| a | {100 * np.mean(a):.1f} ± {100 * np.std(a, ddof=1):.1f} | 3 |"
    assert shown in (tmp_path / "results" / "tiny.md").read_text()
    assert (tmp_path / "results" / "tiny.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(("words", "scale"), [([], "digits"), (["SCALE=cpu"], "cpu")])
def test_make__has_a_target_for_every_table(dry_run, words, scale):
    targets = ["ablations", *(f"ablation-{name}" for name in TABLES)]
    runs = [line for line in dry_run(*targets, *words).stdout.splitlines() if "ablate.py" in line]
    assert len(runs) == len(targets)
    assert all(f"--scale {scale}" in line for line in runs)


@pytest.mark.parametrize("file", sorted((STUDY / "results" / "digits").glob("*.md")), ids=lambda path: path.stem)
def test_readme__shows_the_tables_on_file(file):
    lines = [line for line in file.read_text().splitlines() if line.startswith(("|", "**Found"))]
    readme = (STUDY / "README.md").read_text()
    assert all(line in readme for line in lines)
