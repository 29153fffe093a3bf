"""The study engine plans what was asked for; nothing is run here."""

import pytest


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
