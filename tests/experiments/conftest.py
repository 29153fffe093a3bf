"""What make would do, without doing it."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def dry_run(tmp_path):
    """Prints the commands of targets; the environment counts as installed, whatever its age."""

    def run(*words):
        command = [
            "make",
            "-n",
            "-o",
            f"{sys.prefix}/.installed",
            f"VENV={sys.prefix}",
            f"MAEP_DATA_DIR={tmp_path}",
            *words,
        ]
        environment = {name: value for name, value in os.environ.items() if "MAKE" not in name}  # as make test sets it
        return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, env=environment)

    return run
