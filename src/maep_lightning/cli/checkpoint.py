"""The file that `--ckpt_path` names, read before anything depends on it."""

import re
import zipfile
from pathlib import Path
from typing import Any

import torch

from maep_lightning.models.weights import check_archive


def read_checkpoint(path: str | Path, weights_only: bool = True) -> dict[str, Any]:
    """What Lightning wrote to resume from, with the checksums of its archive compared.

    Args:
        path: The file.
        weights_only: Whether it is refused where it holds more than tensors and plain values, which may run code.

    Returns:
        Its content; tensors stay in the file until they are used.

    Raises:
        OSError: If the file cannot be opened.
        ValueError: If it is cut short, damaged, or no such checkpoint; the message says what to do instead.
    """
    path = Path(path)
    with path.open("rb") as file:
        archive = zipfile.is_zipfile(file)
    try:
        if not archive:
            raise ValueError("it is cut short, or another kind of file")
        check_archive(path)
        content = torch.load(path, map_location="cpu", weights_only=weights_only, mmap=True)
        if not isinstance(content, dict) or "state_dict" not in content:
            raise ValueError("it holds no state of a training")
    except Exception as error:  # torch and pickle raise any for foreign or damaged files
        named = re.search(r"GLOBAL (\S+) was not an allowed global", str(error))
        reason = str(error).partition("\n")[0]
        if named:
            reason = f"it holds {named[1]}, which is only read with --weights_only false, from those whom you trust"
        raise ValueError(
            f"{path} is no checkpoint to resume from: {reason}. Give --ckpt_path another{_newest_beside(path)}, or"
            " start anew without it; where it says last, remove this file first."
        ) from error
    return content


def _newest_beside(path: Path) -> str:
    others = [other for other in path.parent.glob("*.ckpt") if other.is_file() and other.resolve() != path.resolve()]
    return f", such as {max(others, key=lambda other: other.stat().st_mtime)}" if others else ""
