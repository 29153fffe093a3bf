"""The study engine plans what was asked for; nothing is run here."""

import re
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize("text", ["timm:mobilenetv2_100,pad_type=same", "known"])
def test_classifier__may_be_a_text_and_a_name_of_the_data_folder(dry_run, tmp_path, text):
    (tmp_path / "weights").mkdir()
    (tmp_path / "weights" / "known.pth").touch()
    done = dry_run("whitebox-cifar10", f"CLASSIFIER={text}")
    stages = [line for line in done.stdout.splitlines() if "--model.init_args.purifier" in line or "finetune" in line]
    assert done.returncode == 0
    assert "configs/cifar10/finetune.yaml" in done.stdout
    assert all(f"--model.init_args.classifier {text} " in line for line in stages if "--model." in line)


@pytest.mark.parametrize("text", ["unknown", "weights/unknown.pth"])
def test_classifier__that_does_not_exist_stops_before_anything_is_trained(dry_run, text):
    done = dry_run("reproduce-cifar10", f"CLASSIFIER={text}")
    assert done.returncode == 2
    assert text in done.stderr
    assert "pretrain.yaml" not in done.stdout


@pytest.mark.parametrize("target", ["reproduce-cifar10", "denoise-mild-cifar10", "transfer", "ablations", "demo"])
def test_scale__that_is_unknown_is_refused(dry_run, target):
    done = dry_run(target, "SCALE=big")
    assert (done.returncode, done.stdout) == (2, "")
    assert "SCALE=big" in done.stderr


@pytest.mark.parametrize(
    ("target", "stages"),
    [
        ("reproduce-cifar10", 7),
        ("whitebox-cifar10", 6),
        ("denoise-cifar10", 2),
        ("denoise-mild-cifar10", 2),
        ("collage-cifar10", 1),
    ],
)
def test_gpu__trains_at_the_learning_rates_that_were_measured_with_smaller_batches(dry_run, target, stages):
    done = dry_run(target, "SCALE=gpu")
    trainings = [line for line in done.stdout.replace("\\\n", " ").splitlines() if " fit --config " in line]
    trainings = [line for line in trainings if "start=" in line]
    assert len(trainings) == stages
    batch = yaml.safe_load((ROOT / "configs/scale/gpu.yaml").read_text())["data"]["init_args"]["batch_size"]
    for line in trainings:
        (path,) = re.findall(r"configs/cifar10/\S+", line)
        (base_lr,) = re.findall(r"optimization\.base_lr (\S+)", line)
        own = re.findall(r"data\.init_args\.batch_size (\S+)", line)
        config = yaml.safe_load((ROOT / path).read_text())
        measured = float(config["model"]["init_args"]["optimization"]["base_lr"])
        measured *= config["data"]["init_args"]["batch_size"]
        assert float(base_lr) * (int(own[0]) if own else batch) == pytest.approx(measured), path


@pytest.mark.parametrize("scale", ["cpu", "gpu"])
@pytest.mark.parametrize(
    ("words", "trained"),
    [
        ([], True),
        (["GRID=cifar100"], True),
        (["GRID=attacks cifar100 l2", "TRANSFER_ARGS=--device cpu"], True),
        (["GRID=attacks"], False),
        (["TRANSFER_ARGS=--preview"], False),
        (["GRID=cifar100", "TRANSFER_ARGS=--device cpu --preview"], False),
    ],
)
def test_transfer__trains_the_classifier_of_cifar100_where_its_grid_is_measured(
    dry_run, tmp_path, scale, words, trained
):
    (tmp_path / "cifar-100-python").mkdir()
    done = dry_run("transfer", f"SCALE={scale}", f"CIFAR100_RUN={tmp_path}/run", *words)
    assert done.returncode == 0, done.stderr
    assert "experiments.transfer.run" in done.stdout
    assert (" fit --config configs/cifar100/classifier.yaml" in done.stdout) == trained


def test_attention__is_chosen_for_what_trains_alone(make, tmp_path):
    """What the programs that make starts find in their environment."""
    for name in ("Makefile", "setup.cfg", "pyproject.toml", "configs", "experiments"):
        (tmp_path / name).symlink_to(ROOT / name)
    (tmp_path / "bin").mkdir()
    for name in ("python", "lightning"):
        program = tmp_path / "bin" / name
        program.write_text('#!/bin/sh\necho "fused ${TIMM_FUSED_ATTN-unset}"\n')
        program.chmod(0o755)

    def told(*words):
        done = make(f"VENV={tmp_path}", *words, folder=tmp_path)
        assert done.returncode == 0, done.stderr
        return re.findall(r"^fused (\w+)$", done.stdout, re.MULTILINE)

    assert told("test") == ["unset"]
    assert told("demo") == ["0"] * 5
    assert told("denoise-cifar10", "SCALE=gpu") == ["1"] * 2
    assert told("transfer") == ["0", "unset"]
    assert told("ablations") == told("ablation-loss") == ["0"]
