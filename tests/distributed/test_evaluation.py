"""Evaluations in real processes: several at once, and killed ones."""

import multiprocessing
import os
import random
import runpy
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from maep_lightning.evaluation.ledger import Ledger

SCRIPT = Path(__file__).parents[1] / "evaluation" / "linear_case.py"
SAMPLES, CHUNK_SIZE = 44, 8
KILLS = 20


def finish(group):
    """What each process printed: the ledger hash and the statuses of all samples."""
    outputs = [process.communicate(timeout=300) for process in group]
    assert [process.returncode for process in group] == [0] * len(group), outputs[0][1]
    return [output.strip() for output, _ in outputs]


def files_of(run_dir):
    return len(list(run_dir.glob("ledger/*/*/*.safetensors")))


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """The folder of an undisturbed process, and what it printed: the ledger hash and the statuses of all samples."""
    folder = tmp_path_factory.mktemp("run")
    command = [sys.executable, str(SCRIPT), str(folder), str(SAMPLES), str(CHUNK_SIZE)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=True)
    return folder, done.stdout.strip()


@pytest.fixture(scope="module")
def reference(undisturbed):
    return undisturbed[1]


@pytest.mark.world_size
@pytest.mark.parametrize("world_size", [2, pytest.param(4, marks=pytest.mark.slow)])
def test_evaluate__same_ledger_for_any_number_of_processes(start_linear, reference, tmp_path, world_size):
    assert finish(start_linear(tmp_path, SAMPLES, CHUNK_SIZE, world_size)) == [reference] * world_size


@pytest.fixture
def fork_linear(monkeypatch):
    """Runs a process that evaluates the linear case, forked from one that has imported all: start-up takes no time."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(
        ["maep_lightning.evaluation", "maep_lightning.evaluation.report.write", "pyautoattack"]
    )

    def start(run_dir, *die_at):
        monkeypatch.setattr(sys, "argv", [str(SCRIPT), *map(str, (run_dir, SAMPLES, CHUNK_SIZE, *die_at))])
        process = context.Process(
            target=runpy.run_path, args=(str(SCRIPT),), kwargs={"run_name": "__main__"}, daemon=True
        )
        process.start()
        process.join(300)
        return process.exitcode

    return start


@pytest.mark.kill
def test_evaluate__same_ledger_after_twenty_kills(fork_linear, undisturbed, tmp_path):
    """One evaluation, killed at random touches of its files, from the first one in its ledger to the last."""
    draw, whole = random.Random(0), Ledger(undisturbed[0] / "ledger")
    for files in sorted(draw.sample(range(files_of(undisturbed[0])), KILLS)):
        assert fork_linear(tmp_path, files, draw.randrange(12)) == -signal.SIGKILL
        assert files_of(tmp_path) >= files
    assert fork_linear(tmp_path) == 0
    assert Ledger(tmp_path / "ledger").hash() == whole.hash()


@pytest.mark.kill
@pytest.mark.world_size
def test_evaluate__two_processes_finish_what_one_began(fork_linear, start_linear, reference, tmp_path):
    assert fork_linear(tmp_path, 9, 0) == -signal.SIGKILL
    assert finish(start_linear(tmp_path, SAMPLES, CHUNK_SIZE, 2)) == [reference] * 2


@pytest.mark.kill
@pytest.mark.world_size
def test_evaluate__process_does_not_wait_for_a_dead_one(start_linear, tmp_path):
    # Whatever chunks it gets, the second process reads the ledger before it meets the first one again, and dies there.
    group = start_linear(tmp_path, SAMPLES, CHUNK_SIZE, 2, die_at=(1, 0))
    _, errors = group[0].communicate(timeout=300)
    assert group[1].wait(timeout=300) == -signal.SIGKILL
    assert group[0].returncode != 0
    assert "Error" in errors
    assert not (tmp_path / "results.json").exists()
