from pathlib import Path

import numpy as np
import pytest
from PIL import Image


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
