import importlib.util
import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from lightning.pytorch import LightningModule
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from maep_lightning.callbacks.autoattack import metrics
from maep_lightning.evaluation.ledger import Status
from maep_lightning.evaluation.sanity.findings import Check, Sanity

SCRIPT = Path(__file__).with_name("lightning_case.py")
ATTACKED = {"robust/blind/Linf_1-255", "robust/whitebox/Linf_1-255", "robust/worst/Linf_1-255"}


@pytest.fixture(scope="module")
def case():
    spec = importlib.util.spec_from_file_location("lightning_case", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def single(case, tmp_path_factory):
    """One process with Lightning's default flags: under inference mode."""
    folder = tmp_path_factory.mktemp("single")
    callback, logged, _ = case.attack(folder, devices=1)
    return folder, callback, logged


def test_callback__logs_integer_counts_with_the_threat_in_the_name(case, single):
    _, callback, logged = single
    names = ATTACKED | {"robust/undefended_whitebox/Linf_1-255", "clean/undefended", "clean/purified"}
    assert {name.rpartition("/")[0] for name in logged if name != "test/acc_purified"} == names
    for name in names:
        count = logged[f"{name}/acc"] * case.SAMPLES
        assert count == pytest.approx(round(count), abs=1e-5)
        assert logged[f"{name}/ci_low"] <= logged[f"{name}/acc"] <= logged[f"{name}/ci_high"]
    assert all(row["n"] == case.SAMPLES for row in callback.results.rows)


def test_metrics__of_a_threat_with_errors_are_the_bounds_that_the_report_prints(case, single):
    _, callback, _ = single
    results, n = callback.results, case.SAMPLES
    known = Status.ROBUST, Status.BROKEN
    status = torch.tensor([int(s) for s in [*known] * 2 + [Status.ERROR] * (n - 4)], dtype=torch.uint8)
    spoilt = replace(results.outcomes["whitebox"], status=status)
    low, high = spoilt.interval
    rows = [
        row | {"acc_robust": None, "complete": False, "ci95": [low, high]} if row["threat"] == "whitebox" else row
        for row in results.rows
    ]
    found = metrics(replace(results, rows=rows, outcomes=results.outcomes | {"whitebox": spoilt}))
    name = "robust/whitebox/Linf_1-255"
    assert {key: value for key, value in found.items() if key.startswith(name)} == {
        f"{name}/bound_low": 2 / n, f"{name}/bound_high": (n - 2) / n, f"{name}/ci_low": low, f"{name}/ci_high": high,
    }  # fmt: skip
    assert low < 2 / n < (n - 2) / n < high


def test_metrics__of_a_withheld_headline_are_the_interval_alone(single):
    results = single[1].results
    check = Check("S13", "preconditions", "fail", "softmax")
    found = metrics(results.checked(Sanity(4, True, (check,))))
    name = "robust/worst/Linf_1-255"
    assert {key for key in found if key.startswith(name)} == {f"{name}/ci_low", f"{name}/ci_high"}
    assert found[f"{name}/ci_low"] == 0


def test_callback__clean_accuracy_is_that_of_the_test_step(single):
    _, _, logged = single
    assert logged["clean/purified/acc"] == pytest.approx(logged["test/acc_purified"], abs=1e-6)


def test_callback__writes_the_report_and_shows_it_in_tensorboard(single):
    folder, callback, logged = single
    assert {"results.json", "report.md", "report.png"} <= {path.name for path in (folder / "autoattack").iterdir()}
    events = EventAccumulator(str(folder / "tb"))
    events.Reload()
    assert events.Tags()["images"] == ["autoattack/report"]
    (scalar,) = events.Scalars("robust/whitebox/Linf_1-255/acc")
    assert scalar.value == pytest.approx(logged["robust/whitebox/Linf_1-255/acc"])
    checks = {check.id: check.verdict for check in callback.results.sanity.checks if check.verdict != "skip"}
    drawn = {tag: events.Scalars(tag)[0].value for tag in events.Tags()["scalars"] if tag.startswith("sanity/")}
    assert drawn == {f"sanity/{id_}": {"pass": 1, "warn": 0.5, "fail": 0}[verdict] for id_, verdict in checks.items()}


def test_callback__attacks_are_float32_whatever_the_trainer(case, single, tmp_path):
    callback, _, _ = case.attack(tmp_path, devices=1, precision="bf16-mixed", logger=False)
    assert callback.results.ledger_hash == single[1].results.ledger_hash


@pytest.mark.world_size
def test_callback__two_processes_count_every_sample_once(single, tmp_path):
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(SCRIPT), str(tmp_path), "2"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    first, second = (json.loads((tmp_path / f"logged-{rank}.json").read_text()) for rank in (0, 1))
    # The test step's own accuracy is over batches that Lightning pads; the callback's counts are exact.
    for logged in (first, second):
        logged[1].pop("test/acc_purified")
    assert first == second
    expected = {name: value for name, value in single[2].items() if name != "test/acc_purified"}
    assert first == [single[1].results.ledger_hash, expected]


def test_callback__says_what_the_task_lacks(case, tmp_path):
    class Bare(LightningModule):
        def test_step(self, batch, batch_idx):
            return torch.zeros(())

    task = Bare()
    original, case.Task = case.Task, lambda: task
    try:
        with pytest.raises(TypeError, match="Bare has no classifier"):
            case.attack(tmp_path, devices=1, logger=False)
    finally:
        case.Task = original


def test_callback__transfer_and_surrogate_go_together(case):
    with pytest.raises(ValueError, match="give both, or neither"):
        case.AutoAttackCallback(threats=["none", "transfer"])
    with pytest.raises(ValueError, match="give both, or neither"):
        case.AutoAttackCallback(surrogate="classifier.safetensors")


def test_callback__a_missing_file_of_published_rows_is_found_before_the_attacks(case, tmp_path):
    with pytest.raises(FileNotFoundError, match="no file of published rows"):
        case.AutoAttackCallback(reference=str(tmp_path / "expected.json"))


def test_callback__an_empty_list_of_threats_is_not_the_default(case):
    assert case.AutoAttackCallback().plan.threats == ("none", "blind", "whitebox")
    with pytest.raises(ValueError, match="There is no threat model to measure"):
        case.AutoAttackCallback(threats=[])
