"""The makefiles, with an environment that counts as installed."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def make(tmp_path):
    """Runs make in a folder, with the test's own as the data folder."""

    def run(*words, folder=ROOT):
        installed = tmp_path / "installed"  # no file of the makefiles, which are remade even where nothing is to be run
        installed.touch()
        command = ["make", f"INSTALLED={installed}", f"MAEP_DATA_DIR={tmp_path}", *words]
        environment = {name: value for name, value in os.environ.items() if "MAKE" not in name}  # as make test sets it
        environment.pop("TIMM_FUSED_ATTN", None)
        return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False, env=environment)

    return run


@pytest.fixture
def dry_run(make):
    """Says what make would run."""
    return lambda *words: make("-n", f"VENV={sys.prefix}", *words)
