"""What the documentation names exists."""

import ast
import re
from inspect import isclass
from pathlib import Path
from types import UnionType
from typing import Union, get_args, get_origin, get_type_hints

import pytest
from lightning.pytorch import Trainer

from maep_lightning import tasks
from maep_lightning.data import ImageDataModule

ROOT = Path(__file__).resolve().parents[1]
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md"), *(ROOT / "experiments").rglob("*.md")])
CARDS = sorted((ROOT / "src/maep_lightning/zoo").glob("*.md"))
CODE = re.compile(r"```.*?```", flags=re.DOTALL)


def anchors(text):
    """What GitHub calls the headings of a page: lower case, hyphens for spaces, a number for the second of a name."""
    found = []
    for heading in re.findall(r"^#+ (.+)$", CODE.sub("", text), flags=re.MULTILINE):
        shown = re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", heading)
        slug = re.sub(r"[^\w\- ]", "", shown.strip().lower()).replace(" ", "-")
        found.append(slug)
        if found.count(slug) > 1:
            found.append(f"{slug}-{found.count(slug) - 1}")
    return set(found)


def dead_anchors(page, text):
    """Links of a page whose anchor is no heading of the Markdown file that they lead to."""
    dead = []
    for link in re.findall(r"\]\(([^)\s]*#[^)\s]+)\)", text):
        file, _, anchor = link.partition("#")
        target = page.parent / file if file else page
        if "://" in link or target.suffix != ".md":
            continue
        headings = text if not file else target.read_text(encoding="utf-8") if target.exists() else ""
        if anchor not in anchors(headings):
            dead.append(link)
    return dead


def make_targets():
    """The phony targets of the Makefile and of the studies, with the patterns written out."""
    targets = set()
    for file in [ROOT / "Makefile", *(ROOT / "experiments").rglob("*.mk")]:
        text = file.read_text(encoding="utf-8")
        for words in re.findall(r"^\.PHONY: (.+)$", text, flags=re.MULTILINE):
            for name, affixed in re.findall(r"\$\((\w+):%=([^)]*)\)", words):
                value = re.search(rf"^{name} := (.+)$", text, flags=re.MULTILINE)[1]
                tables = re.search(r"\$\(wildcard ([^)]*)\)", value)
                stems = [path.stem for path in ROOT.glob(tables[1])] if tables else value.split()
                targets |= {affixed.replace("%", stem) for stem in stems}
            targets |= {word for word in words.split() if "$" not in word and ")" not in word}
    return targets


def make_calls(text):
    """Targets of the `make` commands of a page: between backticks, in code blocks and in indented lines."""
    blocks = "\n".join(CODE.findall(text))
    lines = re.findall(r"^ {4}make (.+)$", text, flags=re.MULTILINE) + re.findall(r"^make (.+)$", blocks, re.MULTILINE)
    commands = re.findall(r"(?<!`)`make ([^`]+)`", text) + [re.split(r" {2}|#", line)[0] for line in lines]
    return {word for command in commands for word in command.split() if re.fullmatch(r"[a-z][a-z\d-]*", word)}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_links_and_configurations_exist(page):
    text = page.read_text(encoding="utf-8")
    links = [link.split("#")[0] for link in re.findall(r"\]\(([^)\s]+)\)", text) if "://" not in link]
    missing = [link for link in links if link and not (page.parent / link).exists()]
    missing += [name for name in re.findall(r"\bconfigs/[\w./-]+\.yaml", text) if not (ROOT / name).exists()]
    assert missing == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_anchors_exist(page):
    assert dead_anchors(page, page.read_text(encoding="utf-8")) == []


def test_dead_anchors__are_found(tmp_path):
    there = "# The method\n\n## `results.json`\n\n## Twice\n\n## Twice\n\n```\n# no heading\n```\n"
    (tmp_path / "there.md").write_text(there)
    good = "## Here\n[a](there.md#resultsjson) [b](there.md#twice-1) [c](#here) [d](https://e.org/f#g)\n"
    assert dead_anchors(tmp_path / "page.md", good) == []
    bad = "## Here\n[a](there.md#results) [b](there.md#no-heading) [c](#there) [d](no.md#here)\n"
    dead = ["there.md#results", "there.md#no-heading", "#there", "no.md#here"]
    assert dead_anchors(tmp_path / "page.md", bad) == dead


@pytest.mark.parametrize("page", [*PAGES, *CARDS], ids=lambda page: page.relative_to(ROOT).as_posix())
def test_make_targets_exist(page):
    assert make_calls(page.read_text(encoding="utf-8")) - make_targets() == set()


def test_make_calls__are_found_and_targets_written_out():
    text = "`make nothing SCALE=cpu`, make it\n    make one two    # of them\n```\nmake three   # more words\n```\n"
    assert make_calls(text) == {"nothing", "one", "two", "three"}
    known = make_targets()
    assert {"test", "transfer", "denoise-mild-cifar10", "ablations", "ablation-loss"} <= known
    assert not known & {"nothing", "ablation-nothing"}


def takes(kind, option):
    """Whether a class has a parameter such as `attack`, and that one's class one such as `eps`, for `attack.eps`."""
    name, _, rest = option.partition(".")
    hints = get_type_hints(kind.__init__)
    if not rest or name not in hints:
        return name in hints
    return any(inner is dict or (isclass(inner) and takes(inner, rest)) for inner in parts(hints[name]))


def parts(hint):
    """The classes in a type hint such as `LoRA | None`; `dict` for a dictionary of any keys."""
    return [
        get_origin(inner) or inner for inner in (get_args(hint) if get_origin(hint) in (Union, UnionType) else [hint])
    ]


@pytest.mark.parametrize("page", [*PAGES, *CARDS], ids=lambda page: page.relative_to(ROOT).as_posix())
def test_options_of_commands_exist(page):
    """Options in a command are parameters of a task, of the data or of the trainer, whose own objects are left out."""
    classes = {
        "model": [getattr(tasks, name) for name in tasks.__all__],
        "data": [ImageDataModule],
        "trainer": [Trainer],
    }
    found = re.findall(r"--(model|data|trainer)\.(?:init_args\.)?([\w.]+)", page.read_text(encoding="utf-8"))
    unknown = [option for group, option in found if not any(takes(kind, option) for kind in classes[group])]
    assert [option for option in unknown if not option.startswith(("callbacks.", "logger.", "strategy."))] == []


def test_takes__follows_parameters_into_their_classes():
    kind = tasks.CollageFinetuning
    assert all(takes(kind, option) for option in ("guidance", "attack.eps", "lora.rank", "overrides.width"))
    assert not any(takes(kind, option) for option in ("guidence", "attack.epsilon", "guidance.eps", "side.x"))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_python_examples_import_what_exists(page):
    for block in re.findall(r"```python\n(.*?)```", page.read_text(encoding="utf-8"), flags=re.DOTALL):
        imports = [node for node in ast.walk(ast.parse(block)) if isinstance(node, ast.Import | ast.ImportFrom)]
        exec(compile(ast.Module(body=imports, type_ignores=[]), str(page), "exec"), {})
