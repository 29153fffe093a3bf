"""Text files that say which images are tested, and of which classes they are."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from maep_lightning.data.registry import ImageFiles


def read_list(path: Path, place: Path, classes: Sequence[str]) -> ImageFiles:
    """The images that a list names, in its order; empty lines and those that begin with `#` are skipped.

    A line is a path, of which the folder that is named after a class says the class; folders above `place` say none.
    Behind it may stand a space or a tab and the class: its place in `classes`, from 0, or its name. A number is a
    place, also where classes are named by numbers. Where a folder says the class too, both must agree, the number as
    place or as name.

    Args:
        path: The list.
        place: Folder that its paths start from.
        classes: Names of the classes, in label order.

    Raises:
        FileNotFoundError: If the list or a file in it is missing.
        ValueError: If a line says no class, one that there is not, or two, if two lines name the same file, there is no
            line, or the list is not UTF-8 text.
    """
    if not path.is_file():
        raise FileNotFoundError(f"There is no list of images {path.absolute()}: see --data.init_args.image_list.")
    label_of = {name: label for label, name in enumerate(classes)}
    names, labels = [], []
    line_of: dict[str, int] = {}
    for number, line in enumerate(_lines(path), start=1):
        line = line.strip()
        if not line or line.startswith("#"):
            continue
        # A tab ends the path for sure; a space does where what follows is a label, since paths may hold spaces.
        name, tab, word = line.partition("\t") if "\t" in line else line.rpartition(" ")
        name, word = name.strip(), word.strip()
        if not name or (tab == " " and not word.isdecimal() and word not in label_of):
            name, word = line, ""
        try:
            labels.append(_label(_below(place, name), word, label_of))
        except ValueError as error:
            raise ValueError(f"{path}, line {number}: {line!r} {error}{_taken_as_path(line)}") from None
        first = line_of.setdefault(os.path.abspath(place / name), number)
        if first != number:
            raise ValueError(f"{path}, line {number}: {name} is on line {first} already. Remove one of the two lines.")
        names.append(name)
    return _listed(path, place, names, labels)


def _lines(path: Path) -> list[str]:
    """The lines of a text file.

    Raises:
        ValueError: If it is not UTF-8 text.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
        readable = "\0" not in text  # as in UTF-16 without a mark at its beginning
    except UnicodeDecodeError:
        readable = False
    if not readable:
        raise ValueError(
            f"{path} is not UTF-8 text. Save it as UTF-8; in PowerShell write it with Out-File -Encoding utf8 in place "
            f"of >."
        )
    return text.splitlines()


def _taken_as_path(text: str) -> str:
    """What in a line or path may have been meant otherwise, as further sentences of a message."""
    hints = []
    if '"' in text or text.startswith("'"):
        hints.append(" Quotes are taken as part of the path: leave them out.")
    if "," in text:
        hints.append(" A comma is taken as part of the path: before a label put a space or a tab.")
    if "\\" in text:
        hints.append(" A backslash is taken as part of a name: write / between folders.")
    return "".join(hints)


def _below(place: Path, name: str) -> Path:
    """A listed path without the place of the data set, if it has that."""
    path = Path(name)
    for above in (Path(os.path.abspath(place)), place.resolve()):
        if path.is_relative_to(above):
            return path.relative_to(above)
    return path


def _label(path: Path, word: str, label_of: Mapping[str, int]) -> int:
    """The label of a listed path and the word behind it, which may be empty.

    Raises:
        ValueError: If there is none, or two; the message goes on behind the line.
    """
    said = [int(word)] if word.isdecimal() and int(word) < len(label_of) else []
    folders = list(dict.fromkeys(part for part in path.parts[:-1] if part in label_of))
    if len(folders) > 1:
        raise ValueError(
            f"has {len(folders)} folders that are named after classes: {', '.join(folders)}. Write the path as it is "
            f"below the folder of the test images, or rename the folder that says no class."
        )
    folder = folders[0] if folders else None
    if word in label_of and (folder is not None or not word.isdecimal()):
        said.append(label_of[word])
    last = len(label_of) - 1
    if word and not said and folder is not None:
        raise ValueError(
            f"has the label {word}, which is no class and not from 0 to {last}. Correct it, or leave it out."
        )
    if (word and not said) or (not word and folder is None):
        hint = f"; the number {word} is a place, not a name" if word in label_of else ""
        raise ValueError(
            f"says no class of the {len(label_of)}{hint}. Write a path with a folder named after the class, or a space "
            f"and a label from 0 to {last} behind the path."
        )
    if folder is None:
        return said[0]
    if word and label_of[folder] not in said:
        other = list(label_of)[said[0]]
        raise ValueError(
            f"says two classes: the folder {folder}, label {label_of[folder]}, and behind the path {word}, which is "
            f"{other}, label {said[0]}. Correct the label, or leave it out."
        )
    return label_of[folder]


def read_annotations(path: Path, classes: Sequence[str]) -> ImageFiles:
    """The images that Tiny-ImageNet's `val_annotations.txt` names, in its order.

    Args:
        path: The file, beside `images/`.
        classes: Names of the classes, in label order.

    Raises:
        FileNotFoundError: If a file in it is missing.
        ValueError: If a line says no class, or there is no line.
    """
    label_of = {name: label for label, name in enumerate(classes)}
    names, labels = [], []
    for number, line in enumerate(_lines(path), start=1):
        name, _, rest = line.partition("\t")
        word = rest.partition("\t")[0]
        if word not in label_of:
            raise ValueError(f"{path}, line {number}: {word!r} is no class of the {len(classes)}. Unpack the set anew.")
        names.append(os.path.join("images", name))
        labels.append(label_of[word])
    return _listed(path, path.parent, names, labels)


def _listed(path: Path, place: Path, names: Sequence[str], labels: Sequence[int]) -> ImageFiles:
    if not names:
        raise ValueError(f"{path} names no image.")
    if missing := [name for name in names if not (place / name).is_file()]:
        raise FileNotFoundError(
            f"{path} names {len(missing)} of {len(names)} files that are not in {place.absolute()}, such as "
            f"{missing[0]}. Paths start from that folder; is it the one the list was made for?"
            f"{_taken_as_path(missing[0])}"
        )
    return ImageFiles.of(place, names, labels)
