"""The demo as a user runs it, in small: real make, real processes."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
TINY = {
    "demo.classifier": "--trainer.max_epochs 1",
    "demo.pretrain": "--trainer.max_epochs 2",
    "demo.finetune": "--trainer.max_epochs 1 --trainer.limit_train_batches 10",
    "demo.lora": "--trainer.max_epochs 1 --trainer.limit_train_batches 10",
    "demo.attack": "--data.init_args.test_limit 12 --trainer.callbacks.init_args.apgd_steps 2"
    " --trainer.callbacks.init_args.fab_steps 2 --trainer.callbacks.init_args.square_queries 10"
    " --trainer.callbacks.init_args.targets 2",
}


@pytest.fixture
def demo(tmp_path):
    for name in ("Makefile", "setup.cfg", "pyproject.toml"):
        shutil.copy(ROOT / name, tmp_path)
    for name in ("configs", "experiments"):
        shutil.copytree(ROOT / name, tmp_path / name)
    (tmp_path / "installed").touch()
    command, started = ["make", "demo", f"VENV={sys.prefix}", "INSTALLED=installed"], []

    def start(**options):
        words = [*command, *(f"{k}={v}" for k, v in (TINY | options).items())]
        process = subprocess.Popen(
            words, cwd=tmp_path, start_new_session=True, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        )
        started.append(process)
        return process

    yield tmp_path / "runs" / "demo", start
    for process in started:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        process.stdout.close()


def finish(process):
    output = process.communicate(timeout=1800)[0]
    assert process.returncode == 0, output
    return output


@pytest.mark.kill
@pytest.mark.slow
def test_demo__goes_on_after_a_kill_and_then_redoes_nothing(demo):
    run, start = demo
    # An attack of so many steps outlasts any delay of the kill.
    process = start(**{"demo.finetune": f"{TINY['demo.finetune']} --model.init_args.attack.steps 10000000"})
    for _ in range(20_000):
        if (run / "finetune" / "fit.yaml").exists():
            break
        assert process.poll() is None, process.communicate()[0]
        time.sleep(0.05)
    assert process.poll() is None
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert not (run / "finetune" / "purifier.safetensors").exists()
    done = [run / "classifier" / "classifier.safetensors", run / "pretrain" / "purifier.safetensors"]
    made = [file.stat().st_mtime_ns for file in done]

    output = finish(start())
    assert "[finetune] done" in output
    assert [file.stat().st_mtime_ns for file in done] == made
    results = json.loads((run / "results.json").read_text())
    assert {row["threat"] for row in results["rows"]} == {"none", "blind", "whitebox", "worst"}
    assert all(row["complete"] and row["n"] == 12 for row in results["rows"])
    for name in ("report.md", "report.png"):
        assert (run / name).stat().st_size > 1000
    for stage in ("classifier", "pretrain", "finetune", "lora", "attack"):
        assert list((run / stage).glob("events.out.tfevents.*")), stage

    files = {file: file.stat().st_mtime_ns for file in run.rglob("*") if file.is_file()}
    assert "the report:" in finish(start())
    assert {file: file.stat().st_mtime_ns for file in run.rglob("*") if file.is_file()} == files
