"""Imports run one way, so that the purifier and the evaluator can be used without Lightning."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import maep_lightning

ROOT = Path(maep_lightning.__file__).parent
FLOORS = ["functional", "models", "attacks", "evaluation", "data", "tasks", "callbacks", "cli"]
WITHOUT_LIGHTNING = ["functional", "models", "attacks", "evaluation"]
MODULES = sorted(path for floor in FLOORS for path in (ROOT / floor).rglob("*.py"))


def imported(tree: ast.AST, package: str) -> Iterator[str]:
    """Every module that is imported anywhere, also inside functions, by its full name."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            module = ".".join([*base, *([node.module] if node.module else [])])
            yield module
            yield from (f"{module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Call) and getattr(node.func, "id", getattr(node.func, "attr", "")) == "import_module":
            yield from (arg.value for arg in node.args if isinstance(arg, ast.Constant))


def climbs(floor: str, names: Iterator[str]) -> list[str]:
    """The imports that a module of `floor` must not have."""
    below = FLOORS[: FLOORS.index(floor) + 1] if floor != "data" else ["functional", "data"]
    wrong = []
    for name in names:
        parts = name.split(".")
        ours = parts[0] == "maep_lightning" and len(parts) > 1 and parts[1] in FLOORS
        if (ours and parts[1] not in below) or (
            floor in WITHOUT_LIGHTNING and parts[0] in ("lightning", "pytorch_lightning", "lightning_fabric")
        ):
            wrong.append(name)
    return wrong


def test_every_folder_of_the_package_has_a_floor():
    folders = {path.name for path in ROOT.iterdir() if path.is_dir() and list(path.glob("*.py"))}
    assert folders <= set(FLOORS)
    assert len(MODULES) > len(FLOORS)


@pytest.mark.parametrize("path", MODULES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_imports_never_climb(path):
    parts = path.relative_to(ROOT).parts
    package = ".".join(("maep_lightning", *parts[:-1]))
    assert climbs(parts[0], imported(ast.parse(path.read_text(encoding="utf-8")), package)) == []


@pytest.mark.parametrize(
    ("floor", "source"),
    [
        ("models", "from maep_lightning.attacks import pgd"),
        ("models", "from maep_lightning import tasks"),
        ("models", "from ..attacks.pgd import pgd"),
        ("data", "import maep_lightning.models"),
        ("evaluation", "def f():\n    from lightning.pytorch import Trainer"),
        ("attacks", "import_module('maep_lightning.cli')"),
        ("tasks", "if True:\n    import maep_lightning.callbacks.images"),
    ],
)
def test_a_climbing_import_is_seen(floor, source):
    assert climbs(floor, imported(ast.parse(source), f"maep_lightning.{floor}"))


def test_package_root_imports_nothing():
    assert not list(imported(ast.parse((ROOT / "__init__.py").read_text(encoding="utf-8")), "maep_lightning"))
