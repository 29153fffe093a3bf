import importlib.util
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def linear():
    """The module `linear_case.py`, which is also run as a script in other processes."""
    spec = importlib.util.spec_from_file_location("linear_case", Path(__file__).with_name("linear_case.py"))
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def _no_figure(monkeypatch):
    """Drawing takes longer than these evaluations."""
    monkeypatch.setattr("maep_lightning.evaluation.report.draw", lambda *args: None)
