"""Which files of a folder count as images."""

import os
from collections.abc import Iterator
from pathlib import Path

from maep_lightning.data.decoding import image_suffixes


def is_left_over(name: str) -> bool:
    """Whether a folder is hidden, or one that Synology (`@eaDir`) or macOS (`__MACOSX`) leaves among images.

    Args:
        name: Its name, without the folders above it.
    """
    return name.startswith((".", "@")) or name == "__MACOSX"


def image_paths(top: Path) -> list[str]:
    """The images of a folder and of its sub-folders, by their endings: paths below it, sorted.

    Args:
        top: The folder. Hidden files and what `is_left_over` are left out.
    """
    return sorted(path for path in visible_files(top) if is_image(path))


def is_image(path: str) -> bool:
    """Whether Pillow reads files of this ending.

    Args:
        path: A path or name.
    """
    return os.path.splitext(path)[1].lower() in image_suffixes()


def visible_files(top: Path) -> Iterator[str]:
    """All files of a folder and of its sub-folders, as `image_paths` finds them, in no order.

    Links are followed, but no folder is entered twice, nor one that holds the folder itself.

    Args:
        top: The folder.
    """
    start = Path(os.path.abspath(top))
    entered = {os.path.realpath(folder) for path in (start, start.resolve()) for folder in (path, *path.parents)}
    for folder, names, files in os.walk(start, followlinks=True):
        below = os.path.relpath(folder, start)
        yield from (os.path.normpath(os.path.join(below, file)) for file in files if not file.startswith("."))
        kept = []
        # Folders before links, so that what is reached by both has the folder's path.
        for name in sorted(names, key=lambda name: (os.path.islink(os.path.join(folder, name)), name)):
            real = os.path.realpath(os.path.join(folder, name))
            if not is_left_over(name) and real not in entered:
                entered.add(real)
                kept.append(name)
        names[:] = kept
