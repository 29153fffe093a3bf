"""Evaluations in real processes: several at once, and killed ones."""

import random
import signal
import time

import pytest

SAMPLES, CHUNK_SIZE = 44, 8


def finish(group):
    """What each process printed: the ledger hash and the statuses of all samples."""
    outputs = [process.communicate(timeout=300) for process in group]
    assert [process.returncode for process in group] == [0] * len(group), outputs[0][1]
    return [output.strip() for output, _ in outputs]


@pytest.fixture(scope="module")
def reference(tmp_path_factory):
    """The ledger hash and statuses of an undisturbed process."""
    import os
    import subprocess
    import sys
    from pathlib import Path

    script = Path(__file__).parents[1] / "evaluation" / "linear_case.py"
    command = [sys.executable, str(script), str(tmp_path_factory.mktemp("run")), str(SAMPLES), str(CHUNK_SIZE)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=True)
    return done.stdout.strip()


@pytest.mark.world_size
@pytest.mark.parametrize("world_size", [2, pytest.param(4, marks=pytest.mark.slow)])
def test_evaluate__same_ledger_for_any_number_of_processes(start_linear, reference, tmp_path, world_size):
    assert finish(start_linear(tmp_path, SAMPLES, CHUNK_SIZE, world_size)) == [reference] * world_size


def kill_after(group, run_dir, files):
    """SIGKILL all processes once the ledger has so many files; true if that came before their end."""
    while any(process.poll() is None for process in group):
        if len(list(run_dir.glob("ledger/*/*/*.safetensors"))) >= files:
            for process in group:
                process.send_signal(signal.SIGKILL)
            return [process.wait() for process in group] == [-signal.SIGKILL] * len(group)
        time.sleep(0.001)
    return False


@pytest.mark.kill
@pytest.mark.parametrize("seed", [0, *(pytest.param(seed, marks=pytest.mark.slow) for seed in range(1, 5))])
def test_evaluate__same_ledger_after_kills(start_linear, reference, tmp_path, seed):
    draw, files, killed = random.Random(seed), 0, 0
    for _ in range(4):
        files += draw.randint(1, 12)
        killed += kill_after(start_linear(tmp_path, SAMPLES, CHUNK_SIZE), tmp_path, files)
    assert killed >= 2
    assert finish(start_linear(tmp_path, SAMPLES, CHUNK_SIZE)) == [reference]


@pytest.mark.kill
@pytest.mark.world_size
def test_evaluate__two_processes_finish_what_one_began(start_linear, reference, tmp_path):
    assert kill_after(start_linear(tmp_path, SAMPLES, CHUNK_SIZE), tmp_path, 9)
    assert finish(start_linear(tmp_path, SAMPLES, CHUNK_SIZE, 2)) == [reference] * 2


@pytest.mark.kill
@pytest.mark.world_size
def test_evaluate__process_does_not_wait_for_a_dead_one(start_linear, tmp_path):
    group = start_linear(tmp_path, SAMPLES, CHUNK_SIZE, 2)
    while not list(tmp_path.glob("ledger/*/*/*.safetensors")):
        time.sleep(0.001)
    group[1].kill()
    _, errors = group[0].communicate(timeout=300)
    assert group[0].returncode != 0
    assert "Error" in errors
    assert not (tmp_path / "results.json").exists()
