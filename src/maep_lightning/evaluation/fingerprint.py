"""Fingerprints: short texts that change when a weight, a pixel, a label or a package does."""

import hashlib
import json
import re
from collections.abc import Iterable, Mapping
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch
from torch import Tensor, nn

PACKAGES = ("maep-lightning", "torch", "pyautoattack", "numpy")
"""Those of every result; what only some networks are made by, these name themselves, see `of_libraries`."""


def of_json(value: Any) -> str:
    """SHA-256 of a JSON value, independent of the order of keys."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def of_tensors(tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 of named tensors: names, types, shapes and bytes."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def of_weights(module: nn.Module | None) -> str | None:
    """Fingerprint of every parameter and buffer, the non-persistent ones too; None for no module."""
    if module is None:
        return None
    return of_tensors(dict(module.named_parameters()) | dict(module.named_buffers()))


def of_architecture(module: nn.Module | None) -> str | None:
    """Fingerprint of the printed structure, which shows options that are no weights; None for no module.

    What it does not show, such networks say themselves: those by import path `source_sha256` (see
    `maep_lightning.models.programs.import_network`), those of libraries `specification` (see
    `maep_lightning.models.preprocessing.NormalizedClassifier`).
    """
    if module is None:
        return None
    text = f"{type(module).__module__}.{type(module).__qualname__}\n{module!r}"
    for name, part in module.named_modules():
        for word in ("source_sha256", "specification"):
            if isinstance(said := getattr(part, word, None), str) and said:
                text += f"\n{name} {word}={said}"
    return hashlib.sha256(re.sub(r" at 0x[0-9a-f]+", "", text).encode()).hexdigest()


def of_packages() -> dict[str, str]:
    """Versions of the packages that every result depends on."""
    return _versions(PACKAGES)


def of_libraries(module: nn.Module | None) -> dict[str, str]:
    """Versions of the packages besides that hold a network's code; empty for no module.

    Args:
        module: A network, whose parts name such packages in a tuple `packages`.
    """
    named = [getattr(part, "packages", ()) for part in (module.modules() if module is not None else ())]
    names = {name for each in named if isinstance(each, tuple) for name in each if isinstance(name, str)}
    return _versions(sorted(names))


def _versions(names: Iterable[str]) -> dict[str, str]:
    found = {}
    for name in names:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "not installed"
    return found
