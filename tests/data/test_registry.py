import sys

import pytest
import torch

from maep_lightning.data import DatasetSpec, LabelledImages, get_spec, known_names, register


def spec(loader, **changes):
    fields = {
        "name": "toy",
        "image_size": 8,
        "class_names": ("a", "b"),
        "licence": "none",
        "how_to_get": "make it",
        "loader": loader,
        "val_size": 1,
    }
    return DatasetSpec(**(fields | changes))


def test_shipped_sets_are_known():
    classes = {"cifar10": 10, "cifar100": 100, "digits": 10, "imagenet": 1000, "imagenette": 10, "tiny-imagenet": 200}
    assert known_names() == sorted([*classes, "folder"])
    for name, count in classes.items():
        assert get_spec(name).num_classes == len(set(get_spec(name).class_names)) == count


@pytest.mark.parametrize(
    ("typed", "meant"),
    [("CIFAR-10", "cifar10"), ("cifar_100", "cifar100"), ("digit", "digits"), ("Tiny_ImageNet", "tiny-imagenet")],
)
def test_unknown_name_lists_the_known_and_suggests_the_nearest(typed, meant):
    with pytest.raises(ValueError, match=rf"{typed}.*cifar10, cifar100, digits.*mean '{meant}'"):
        get_spec(typed)


def test_far_name_gets_no_suggestion():
    with pytest.raises(ValueError, match="known: cifar10") as caught:
        get_spec("xyz")
    assert "mean" not in str(caught.value)


def test_name_is_taken_once():
    with pytest.raises(ValueError, match="registered already"):
        register(spec(None, name="digits"))
    assert register(get_spec("digits")) is get_spec("digits")


@pytest.mark.parametrize(
    ("images", "labels"),
    [
        (torch.zeros(2, 3, 8, 8), torch.tensor([0, 1])),
        (torch.zeros(2, 8, 8, 3, dtype=torch.uint8), torch.tensor([0, 1])),
        (torch.zeros(3, 3, 8, 8, dtype=torch.uint8), torch.tensor([0, 1])),
        (torch.zeros(2, 3, 8, 8, dtype=torch.uint8), torch.tensor([0, 2])),
        (torch.zeros(2, 3, 8, 8, dtype=torch.uint8), torch.tensor([0.0, 1.0])),
        (torch.zeros(0, 3, 8, 8, dtype=torch.uint8), torch.zeros(0, dtype=torch.int64)),
    ],
)
def test_loader_of_another_layout_is_refused(images, labels, tmp_path):
    with pytest.raises(ValueError, match="loader of toy"):
        spec(lambda *_: LabelledImages(images, labels)).load("train", tmp_path, False)


TOY = """
from maep_lightning.data import DatasetSpec, register
register(DatasetSpec("toy", 8, ("a", "b"), "none", "make it", lambda *_: None, 1))
"""


@pytest.fixture
def modules(tmp_path, monkeypatch):
    """An importable folder: one module registers `toy`, others fail in their own ways."""
    monkeypatch.setattr("maep_lightning.data.registry._SPECS", {name: get_spec(name) for name in known_names()})
    monkeypatch.syspath_prepend(tmp_path)
    texts = {"own_toy": TOY, "own_needs": "import not_installed", "own_typo": "def (", "own_name": "x = 1 / 0"}
    for name, text in texts.items():
        (tmp_path / f"{name}.py").write_text(text)
    yield
    for name in texts:
        sys.modules.pop(name, None)


def test_module__is_imported_and_its_data_set_found(modules):
    assert get_spec("python:own_toy:toy").class_names == ("a", "b")
    assert get_spec("python:own_toy:toy") is get_spec("toy")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("python:own_toy", "names no data set of a module; write python:PACKAGE.MODULE:NAME"),
        ("python:own_toi:toy", "own_toi:toy cannot be imported .*put its folder in PYTHONPATH"),
        ("python:own_toy.sub:toy", "own_toy.sub:toy cannot be imported"),
        ("python:own_toy:tyo", r"own_toy registers no data set 'tyo'; call register\(.*toy\. Did you mean 'toy'"),
        ("python:own_needs:toy", "own_needs fails when it is imported: ModuleNotFoundError: .*not_installed"),
        ("python:own_typo:toy", "own_typo fails when it is imported: SyntaxError"),
        ("python:own_name:toy", "own_name fails when it is imported: ZeroDivisionError: division by zero"),
        ("toy", "no data set 'toy'.*data set is named python:MODULE:NAME"),
    ],
)
def test_module__that_gives_no_data_set_is_explained(modules, text, words):
    with pytest.raises(ValueError, match=words):
        get_spec(text)
