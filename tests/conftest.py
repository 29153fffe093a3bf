"""Shared by all tests: no network, no accelerator, no settings of the person who runs them."""

import hashlib
import importlib.util
import os
import pickle
import re
import socket
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import pytest

# Networks here are tiny, and threads that wait for each other on a busy machine make them up to ten times slower. Set
# before torch is imported, and inherited by the processes that tests start.
os.environ.setdefault("OMP_NUM_THREADS", "1")


@pytest.fixture(autouse=True, scope="session")
def _no_network():
    """Only this machine may be reached, as the processes of a distributed test do."""
    connect = socket.socket.connect

    def guarded(self, address):
        if self.family in (socket.AF_INET, socket.AF_INET6) and address[0] not in ("127.0.0.1", "::1", "localhost"):
            raise ConnectionRefusedError(f"a test tried to reach {address}; tests run offline")
        return connect(self, address)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(socket.socket, "connect", guarded)
        yield


@pytest.fixture(autouse=True)
def _plain_environment(monkeypatch):
    for name in ("JSONARGPARSE_DEBUG", "JSONARGPARSE_DEPRECATION_WARNINGS", "PL_GLOBAL_SEED"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def cli(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Runs `lightning` with the given words in an empty folder, in this process."""
    from maep_lightning.cli import main

    monkeypatch.chdir(tmp_path)

    def run(*words: str) -> None:
        assert main([str(word) for word in words]) is None

    return run


@pytest.fixture(scope="session")
def published() -> ModuleType:
    """The module `models/published_case.py`: the masked autoencoder written out from the paper."""
    path = Path(__file__).with_name("models") / "published_case.py"
    spec = importlib.util.spec_from_file_location("published_case", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def squares(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[], None]]:
    """The data set `squares` of docs/own-data.md as an importable file, in `my-data`; forgets it, as a new process."""
    import torch

    from maep_lightning.data import registry

    page = Path(__file__).parents[1] / "docs" / "own-data.md"
    (text,) = [block for block in re.findall(r"```python\n(.*?)```", page.read_text(), re.S) if "# squares.py" in block]
    text += "\n\nfrom maep_lightning.data import ImageDataModule\n\n\nclass SquaresDataModule(ImageDataModule): ...\n"
    (tmp_path / "squares.py").write_text(text)
    images = torch.randint(0, 256, (6, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    (tmp_path / "my-data" / "squares").mkdir(parents=True)
    torch.save((images, torch.arange(6) % 2), tmp_path / "my-data" / "squares" / "test.pt")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(registry, "_SPECS", dict(registry._SPECS))

    def forget() -> None:
        registry._SPECS.pop("squares", None)
        sys.modules.pop("squares", None)

    forget()
    yield forget
    forget()


class FakeCifar(NamedTuple):
    """Files of CIFAR's layout; `pixels` are rows of 3072 by file: 1024 red, 1024 green, 1024 blue."""

    root: Path
    pixels: dict[str, Any]
    labels: dict[str, list[int]]


def _write_pickle(path: Path, content: dict[str, Any]) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(pickle.dumps(content))
    return hashlib.md5(path.read_bytes()).hexdigest()


def _fabricate(cls: Any, root: Path, monkeypatch: pytest.MonkeyPatch, per_file: int) -> FakeCifar:
    """Tiny files in the published layout; the class is told their checksums, the checking itself stays real."""
    import numpy as np

    rng = np.random.RandomState(0)
    classes, label_key = (100, "fine_labels") if cls.__name__ == "CIFAR100" else (10, "labels")
    pixels, labels = {}, {}
    for attribute in ("train_list", "test_list"):
        listing = []
        for name, _ in getattr(cls, attribute):
            pixels[name] = rng.randint(0, 256, (per_file, 3072), dtype=np.uint8)
            labels[name] = [(i * 7) % classes for i in range(per_file)]
            md5 = _write_pickle(root / cls.base_folder / name, {"data": pixels[name], label_key: labels[name]})
            listing.append([name, md5])
        monkeypatch.setattr(cls, attribute, listing)
    names = [f"class{i}" for i in range(classes)]
    md5 = _write_pickle(root / cls.base_folder / cls.meta["filename"], {cls.meta["key"]: names})
    monkeypatch.setattr(cls, "meta", {**cls.meta, "md5": md5})
    return FakeCifar(root, pixels, labels)


@pytest.fixture
def fake_cifar10(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeCifar:
    """CIFAR-10 in `data`, 20 images a file."""
    from torchvision import datasets

    return _fabricate(datasets.CIFAR10, tmp_path / "data", monkeypatch, per_file=20)


@pytest.fixture
def fake_cifar100(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeCifar:
    """CIFAR-100 in `data`, 200 images a file."""
    from torchvision import datasets

    return _fabricate(datasets.CIFAR100, tmp_path / "data", monkeypatch, per_file=200)
