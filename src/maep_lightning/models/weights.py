"""Safetensors files that carry an architecture beside its weights."""

import argparse
import json
import re
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, distributed, nn
from torch.distributed.tensor import DTensor

_SCALAR = np.float64(0).__reduce__()[0]
_BESIDE: list[Any] = [
    argparse.Namespace,  # the command line, in training checkpoints of facebookresearch's repositories
    (_SCALAR, "numpy.core.multiarray.scalar"),  # an accuracy, as numpy 1 writes it
    (_SCALAR, "numpy._core.multiarray.scalar"),  # and numpy 2
    np.dtype,
    *{type(np.dtype(kind)) for kind in "?bBhHiIlLqQefd"},
]
"""What may stand beside weights in a file, and does nothing."""


def whole_state(module: nn.Module) -> dict[str, Tensor]:
    """The weights of a module, each tensor whole.

    Args:
        module: Any module. Where FSDP has sharded it, every process must call this together, since each holds a part.

    Returns:
        Tensors by name, detached.
    """
    state = module.state_dict().items()
    return {name: tensor.full_tensor() if isinstance(tensor, DTensor) else tensor for name, tensor in state}


def write_weights(path: str | Path, state: dict[str, Tensor], header: dict[str, Any]) -> None:
    """Write weights and a JSON header into one safetensors file, atomically.

    Of several processes that train together the first one writes, since all hold the same weights.

    Args:
        path: Where to write; folders are made.
        state: Tensors by name.
        header: What is needed to rebuild the network, and provenance; JSON types only.
    """
    if distributed.is_initialized() and distributed.get_rank() > 0:
        return
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in state.items()}
    partial = path.with_name(path.name + ".partial")
    partial.write_bytes(save(tensors, metadata={"maep": json.dumps(header, sort_keys=True)}))
    partial.replace(path)


def read_weights(path: str | Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read what `write_weights` wrote; a plain safetensors file or a PyTorch state dict has an empty header.

    Args:
        path: A `.safetensors` file, or a `.pt`, `.pth` or `.ckpt` with a state dict, bare, or under `state_dict` (as
            Lightning writes it) or `model`, or the only one there under whatever key.

    Returns:
        The tensors by name and the header.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the file is corrupt, or holds no weights or several.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"There is no weights file {path}. Train it first, or correct the path.")
    try:
        if path.suffix == ".safetensors":
            with safe_open(str(path), framework="pt") as file:
                state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118, not a dict
                return state, json.loads((file.metadata() or {}).get("maep", "{}"))
        check_archive(path)
        with torch.serialization.safe_globals(_BESIDE):
            content = torch.load(path, map_location="cpu", weights_only=True)
    except (SafetensorError, OSError, RuntimeError, EOFError, ValueError, KeyError) as error:
        raise ValueError(
            f"{path} is not a readable weights file ({error}). It may be cut short: make it again."
        ) from error
    except Exception as error:  # pickle raises a family of its own for foreign or damaged files
        named = re.search(r"GLOBAL (\S+) was not an allowed global", str(error))
        what = f", but {named[1]}" if named else ""
        raise ValueError(
            f"{path} holds no plain weights{what}. Only state dicts of tensors are loaded: write one where the network"
            " is, with torch.save(network.state_dict(), FILE)."
        ) from error
    for key in ("state_dict", "model"):
        content = content.get(key, content) if isinstance(content, dict) else {}
    if _is_state(content):
        return content, {}
    inside = {key: value for key, value in content.items() if _is_state(value)} if isinstance(content, dict) else {}
    if not inside:
        raise ValueError(f"{path} holds no state dict of tensors.")
    if len(inside) > 1:
        raise ValueError(
            f"{path} holds several state dicts, {', '.join(map(str, inside))}: save the one that is meant to a file of"
            " its own."
        )
    return next(iter(inside.values())), {}


def _is_state(content: Any) -> bool:
    return isinstance(content, dict) and bool(content) and all(isinstance(each, Tensor) for each in content.values())


def check_archive(path: Path) -> None:
    """Compare the checksums in a zip archive, as torch's files are, which torch does not do when it loads one.

    Args:
        path: The file; one that is no zip archive passes.

    Raises:
        ValueError: If the archive is damaged.
    """
    try:
        if not zipfile.is_zipfile(path):
            return
        with zipfile.ZipFile(path) as archive:
            # All are 0 where torch.serialization.set_crc32_options(False) was called before it was written.
            damaged = archive.testzip() if any(entry.CRC for entry in archive.infolist()) else None
    except Exception as error:  # zipfile has an error of its own for some damage, and any for the rest
        raise ValueError(f"damaged archive: {error}") from error
    if damaged is not None:
        raise ValueError(f"damaged archive: {damaged} does not have its checksum")


def strip_prefix(module: nn.Module, state: dict[str, Tensor]) -> dict[str, Tensor]:
    """A network's tensors out of what holds it, such as a LightningModule or `nn.DataParallel`.

    Args:
        module: The network.
        state: Tensors by name.

    Returns:
        Those of one prefix without it, where they are all that the network needs and no more, and beside them there are
        just single numbers, such as the counts of a metric; `state` as it is where that is not so.
    """
    own = module.state_dict().keys()
    needed = {name for name in own if not name.endswith("num_batches_tracked")}
    some = min(needed)
    for prefix in {name.removesuffix(some) for name in state if name.endswith(f".{some}")}:
        inside = {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}
        others = (value for name, value in state.items() if not name.startswith(prefix))
        if needed <= inside.keys() <= own and all(value.numel() == 1 for value in others):
            return inside
    return state


def load_state(module: nn.Module, state: dict[str, Tensor], source: str | Path) -> None:
    """Load weights strictly, with an error that names the file and what does not match.

    Only BatchNorm's count of training batches may be missing, as it is in old files: evaluation does not use it.

    Args:
        module: The network.
        state: Tensors by name.
        source: Where they came from, for the message.

    Raises:
        ValueError: If names or shapes differ.
    """
    own = module.state_dict()
    state = {**{name: value for name, value in own.items() if name.endswith("num_batches_tracked")}, **state}
    missing, unexpected = sorted(own.keys() - state.keys()), sorted(state.keys() - own.keys())
    misshapen = [k for k in own.keys() & state.keys() if own[k].shape != state[k].shape]
    if missing or unexpected or misshapen:
        raise ValueError(
            f"{source} does not fit {type(module).__name__}: {len(missing)} missing {missing[:3]}, "
            f"{len(unexpected)} unexpected {unexpected[:3]}, {len(misshapen)} of another shape {sorted(misshapen)[:3]}."
        )
    module.load_state_dict(state)
