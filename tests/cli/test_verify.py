"""`maep verify` on a run of `lightning test`, with the files that the run recorded."""

import json
import sys

import numpy as np
import pytest
import torch
from lightning.pytorch import Trainer
from PIL import Image

from maep_lightning.attacks.threat import Epsilon
from maep_lightning.callbacks import AutoAttackCallback
from maep_lightning.cli import main
from maep_lightning.data import ImageDataModule
from maep_lightning.evaluation.plan import PlanChangedError
from maep_lightning.evaluation.sources import Sources
from maep_lightning.models.classifiers import create_classifier, save_classifier
from maep_lightning.models.registry import create_purifier
from maep_lightning.tasks import PurifierEvaluation

SMALL = {"width": 16, "depth": 1, "heads": 2, "decoder_width": 16, "decoder_heads": 2, "refine_width": 8}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("verify")
    for seed, name in ((0, "classifier"), (1, "other")):
        torch.manual_seed(seed)
        save_classifier(create_classifier("resnet8", 10), folder / f"{name}.safetensors", "resnet8", 10)
    # A bare state dict, as classifiers come from elsewhere.
    torch.save(create_classifier("resnet8", 10).state_dict(), folder / "surrogate.pth")
    create_purifier("maep_conv_patch4_32", **SMALL).save_pretrained(folder / "purifier.safetensors")
    files = [str(folder / f"{name}.safetensors") for name in ("classifier", "purifier")]
    task = PurifierEvaluation(*files, policy="overlap:16")
    budget = {"apgd_steps": 2, "fab_steps": 1, "square_queries": 2, "targets": 1}
    options = {"threats": ["none", "transfer", "whitebox"], "sanity": 2}
    options |= {"surrogate": str(folder / "surrogate.pth"), "surrogate_name": "resnet8"}
    callback = AutoAttackCallback(eps=Epsilon("32/255"), n=12, chunk_size=12, **options, **budget)
    options = {"accelerator": "cpu", "logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    trainer = Trainer(default_root_dir=folder, callbacks=[callback], **options)
    # Of images in a folder, so that how they are chosen and resized must be known again.
    for number in range(14):
        path = folder / "photos" / "abcdefghij"[number % 10] / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.random.RandomState(number).randint(0, 256, (40, 44, 3), dtype=np.uint8)).save(path)
    data = ImageDataModule(
        "folder", folder=str(folder / "photos"), image_size=32, crop_pct=0.9, interpolation="bicubic", test_limit=12
    )
    trainer.test(task, datamodule=data, verbose=False)
    return folder


def test_verify__needs_nothing_but_the_folder(run, capsys):
    main(["verify", str(run)])
    captured = capsys.readouterr()
    assert "24 clean" in captured.out
    assert "verified" in captured.out


@pytest.fixture(scope="module")
def baseline(run):
    """A run with a purifier that a text makes."""
    folder = run / "baseline"
    task = PurifierEvaluation(str(run / "classifier.safetensors"), "jpeg:75")
    budget = {"apgd_steps": 2, "fab_steps": 1, "square_queries": 2, "targets": 1}
    callback = AutoAttackCallback(threats=["none", "bpda"], chunk_size=6, sanity=0, **budget)
    options = {"accelerator": "cpu", "logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    trainer = Trainer(default_root_dir=folder, callbacks=[callback], **options)
    trainer.test(task, datamodule=ImageDataModule("digits", test_limit=6), verbose=False)
    return folder


def test_verify__rebuilds_a_purifier_from_its_text(baseline, capsys):
    main(["verify", str(baseline)])
    assert "verified" in capsys.readouterr().out
    assert "jpeg:75 before" in (baseline / "autoattack" / "report.md").read_text()


def judge(task, folder):
    """Four clean images of digits, into a folder."""
    callback = AutoAttackCallback(threats=["none"], sanity=0)
    options = {"accelerator": "cpu", "logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    trainer = Trainer(default_root_dir=folder, callbacks=[callback], **options)
    trainer.test(task, datamodule=ImageDataModule("digits", test_limit=4), verbose=False)


@pytest.mark.faults
def test_verify__a_run_that_was_refused_leaves_the_sources_of_the_one_before(run, tmp_path, capsys):
    classifier = str(run / "classifier.safetensors")
    judge(PurifierEvaluation(classifier, "mirror"), tmp_path)
    with pytest.raises(PlanChangedError, match="purifier_architecture"):
        judge(PurifierEvaluation(classifier, "jpeg:75"), tmp_path)
    main(["verify", str(tmp_path)])
    assert "verified" in capsys.readouterr().out


@pytest.mark.faults
def test_verify__a_run_that_was_stopped_has_its_sources(run, tmp_path, monkeypatch):
    monkeypatch.setattr("maep_lightning.evaluation.engine._Engine.climb", lambda *args: {}["stop"])
    with pytest.raises(KeyError, match="stop"):
        judge(PurifierEvaluation(str(run / "classifier.safetensors"), "mirror"), tmp_path)
    assert Sources.read(tmp_path / "autoattack").purifier == "mirror"


def test_verify__follows_a_purifier_by_import_path_and_notices_that_it_was_edited(run, tmp_path, monkeypatch, capsys):
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "dimmer.py").write_text("def dim(images):\n    return images * 0.9\n")
    task = PurifierEvaluation(str(run / "classifier.safetensors"), "python:dimmer:dim")
    judge(task, tmp_path)
    main(["verify", str(tmp_path)])
    assert "verified" in capsys.readouterr().out
    (tmp_path / "dimmer.py").write_text("def dim(images):\n    return images * 0.90\n")
    monkeypatch.delitem(sys.modules, "dimmer")
    with pytest.raises(SystemExit):
        main(["verify", str(tmp_path)])
    assert "purifier_architecture: not what was evaluated" in capsys.readouterr().err


@pytest.mark.faults
def test_verify__another_value_of_the_text_is_another_purifier(baseline, capsys):
    with pytest.raises(SystemExit) as exit_:
        main(["verify", str(baseline), "--purifier", "jpeg:50"])
    assert exit_.value.code == 1
    assert "purifier_architecture: not what was evaluated" in capsys.readouterr().err


@pytest.mark.faults
def test_verify__mistyped_text_exits_with_2_and_a_hint(baseline, capsys):
    with pytest.raises(SystemExit) as exit_:
        main(["verify", str(baseline), "--purifier", "jpg:75"])
    assert exit_.value.code == 2
    assert "Did you mean jpeg?" in capsys.readouterr().err


@pytest.mark.faults
def test_verify__foreign_classifier_fails_with_its_name(run, capsys):
    with pytest.raises(SystemExit) as exit_:
        main(["verify", str(run / "autoattack"), "--classifier", str(run / "other.safetensors")])
    assert exit_.value.code == 1
    assert "classifier_weights: not what was evaluated" in capsys.readouterr().err


def test_verify__policy_is_recorded_and_another_is_seen(run, capsys):
    rows = json.loads((run / "autoattack" / "results.json").read_text())["rows"]
    assert {row["policy"] for row in rows if row["purifier"] is not None} == {"overlap:16"}
    with pytest.raises(SystemExit):
        main(["verify", str(run), "--policy", "tile:16"])
    assert "purifier_architecture: not what was evaluated" in capsys.readouterr().err


def test_verify__draws_are_repeated_by_the_chunks_of_the_run(run, tmp_path, capsys):
    task = PurifierEvaluation(str(run / "classifier.safetensors"), "noise:0.1+noise:0.1", policy="tile:16", chunk=3)
    judge(task, tmp_path)
    main(["verify", str(tmp_path)])
    assert "verified" in capsys.readouterr().out


@pytest.mark.faults
def test_verify__tampered_file_fails_with_its_name(run, capsys):
    path = next((run / "autoattack" / "ledger" / "none").rglob("*.safetensors"))
    content = path.read_bytes()
    try:
        path.write_bytes(content[:-2])
        with pytest.raises(SystemExit) as exit_:
            main(["verify", str(run)])
        assert exit_.value.code == 1
        assert str(path) in capsys.readouterr().err
    finally:
        path.write_bytes(content)


@pytest.mark.parametrize(
    "words",
    [
        ["--data=ImageDataModule", "--data.dataset=python:squares:squares"],
        ["--data=squares.SquaresDataModule", "--data.dataset=squares"],
    ],
    ids=["by its module", "by a subclass"],
)
def test_verify__finds_a_data_set_of_ones_own(words, cli, squares, tmp_path, capsys):
    torch.manual_seed(0)
    save_classifier(create_classifier("resnet8", 2), tmp_path / "two.safetensors", "resnet8", 2)
    cli(
        "test", "--model=PurifierEvaluation", "--model.classifier=two.safetensors", "--model.purifier=jpeg:75", *words,
        "--data.root=my-data", "--trainer.accelerator=cpu", "--trainer.logger=false",
        "--trainer.default_root_dir=run", "--trainer.callbacks+=AutoAttackCallback",
        "--trainer.callbacks.threats=[none, blind:fgsm]", "--trainer.callbacks.sanity=0",
    )  # fmt: skip
    assert json.loads((tmp_path / "run" / "autoattack" / "sources.json").read_text())["dataset"].startswith("python:")
    assert json.loads((tmp_path / "run" / "autoattack" / "results.json").read_text())["rows"][0]["dataset"] == "squares"
    squares()
    cli("verify", "run")
    assert "verified" in capsys.readouterr().out


@pytest.mark.parametrize(("words", "hint"), [(["nowhere"], "plan.json is missing"), ([], "RUN")])
def test_verify__mistakes_of_the_user_exit_with_2(words, hint, capsys):
    with pytest.raises(SystemExit) as exit_:
        main(["verify", *words])
    assert exit_.value.code == 2
    assert hint in capsys.readouterr().err
