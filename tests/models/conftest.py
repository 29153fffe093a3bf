import importlib.util
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def published():
    """The module `published_case.py`: the masked autoencoder written out from the paper."""
    spec = importlib.util.spec_from_file_location("published_case", Path(__file__).with_name("published_case.py"))
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
