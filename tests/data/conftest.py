import hashlib
import pickle
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from PIL import Image
from torchvision import datasets


class FakeCifar(NamedTuple):
    root: Path
    pixels: dict[str, np.ndarray]  # rows of 3072: 1024 red, 1024 green, 1024 blue
    labels: dict[str, list[int]]


def write_pickle(path: Path, content: dict) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(pickle.dumps(content))
    return hashlib.md5(path.read_bytes()).hexdigest()


def fabricate(cls, root: Path, monkeypatch, per_file: int) -> FakeCifar:
    """Tiny files in the published layout; the class is told their checksums, the checking itself stays real."""
    rng = np.random.RandomState(0)
    label_key = "fine_labels" if cls is datasets.CIFAR100 else "labels"
    classes = 100 if cls is datasets.CIFAR100 else 10
    pixels, labels = {}, {}
    for attribute in ("train_list", "test_list"):
        listing = []
        for name, _ in getattr(cls, attribute):
            pixels[name] = rng.randint(0, 256, (per_file, 3072), dtype=np.uint8)
            labels[name] = [(i * 7) % classes for i in range(per_file)]
            md5 = write_pickle(root / cls.base_folder / name, {"data": pixels[name], label_key: labels[name]})
            listing.append([name, md5])
        monkeypatch.setattr(cls, attribute, listing)
    names = [f"class{i}" for i in range(classes)]
    md5 = write_pickle(root / cls.base_folder / cls.meta["filename"], {cls.meta["key"]: names})
    monkeypatch.setattr(cls, "meta", {**cls.meta, "md5": md5})
    return FakeCifar(root, pixels, labels)


@pytest.fixture
def fake_cifar10(tmp_path, monkeypatch):
    return fabricate(datasets.CIFAR10, tmp_path / "data", monkeypatch, per_file=20)


@pytest.fixture
def fake_cifar100(tmp_path, monkeypatch):
    return fabricate(datasets.CIFAR100, tmp_path / "data", monkeypatch, per_file=200)


def save_photos(folder: Path, per_class: dict[str, int]) -> None:
    """Class sub-folders of JPEG images, each of its own grey level and of various sizes."""
    for number, (name, count) in enumerate(per_class.items()):
        for i in range(count):
            path = folder / name / f"{name.split('/')[0]}_{i}.JPEG"
            path.parent.mkdir(parents=True, exist_ok=True)
            level = 20 + (37 * number + 11 * i) % 200
            pixels = level + np.random.RandomState(level).randint(-12, 13, (32 + 2 * number, 40 + 3 * i, 3))
            Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(path)


@pytest.fixture
def write_photos():
    return save_photos


@pytest.fixture
def photos(tmp_path):
    """`train/` of 12, 10 and 8 images and `val/` of 4, 5 and 6, in the classes a, b and c."""
    save_photos(tmp_path / "photos" / "train", {"a": 12, "b": 10, "c": 8})
    save_photos(tmp_path / "photos" / "val", {"a": 4, "b": 5, "c": 6})
    return tmp_path / "photos"
