import importlib.util
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
from torch import nn


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
    monkeypatch.setattr("maep_lightning.evaluation.report.write.draw", lambda *args: None)


@pytest.fixture
def slow(linear, monkeypatch):
    """A case on a clock that counts the classifier's images, so that a pass takes a second each.

    The clock is the evaluator's alone: whoever else waits with a time-out, such as a DataLoader that is put away, would
    wait for ever on one that stands still.
    """
    clock = [0.0]

    class Slow(nn.Module):
        def __init__(self, inner):
            super().__init__()
            self.inner = inner

        def forward(self, images):
            clock[0] += len(images)
            return self.inner(images)

    counting = SimpleNamespace(**vars(time) | {"monotonic": lambda: clock[0]})
    for module in ("cost", "engine", "progress"):
        monkeypatch.setattr(f"maep_lightning.evaluation.{module}.time", counting)
    classifier, mirror, images, labels = linear.build(16)
    return Slow(classifier).eval(), mirror, images, labels
