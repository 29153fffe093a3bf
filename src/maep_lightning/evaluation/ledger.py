"""The ledger: one file for every (rung, attack, chunk), written whole or not at all.

The bytes of a file are a function of the plan and the chunk alone: no time, host, rank or path is in it. A killed run
goes on with the files that are missing, and any number of processes leaves the same bytes.
"""

import hashlib
import json
import os
import shutil
import tempfile
from dataclasses import dataclass, field
from enum import IntEnum
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load, save
from torch import Tensor

from maep_lightning.evaluation import fingerprint


class LedgerError(RuntimeError):
    """A ledger file is damaged, edited, or of another evaluation."""


class Status(IntEnum):
    """What became of a sample under an attack."""

    ROBUST = 0
    BROKEN = 1
    CLEAN_WRONG = 2
    ERROR = 3
    NOT_RUN = 4


@dataclass(frozen=True)
class Unit:
    """What one attack did to one chunk.

    Attributes:
        rung: Name of the rung.
        attack: Name of the attack.
        chunk: Number of the chunk.
        context: Fingerprint of all that the result depends on besides the chunk's own data.
        data: Fingerprint of the chunk's images and labels.
        seed: Of the attack.
        indices: `(k,)` int64, the global numbers of the samples attacked.
        status: `(k,)` uint8, a `Status` each.
        prediction: `(k,)` int64, of the judge on the attacked image.
        margin: `(k,)` float32, logit of the label minus the largest other.
        adversarial: `(m, C, H, W)` float32 in [0, 1], of the samples whose status is BROKEN, in their order.
        error: Text of an exception that ended the attack, or None.
        notes: Counts and warnings of the attack.
    """

    rung: str
    attack: str
    chunk: int
    context: str
    data: str
    seed: int
    indices: Tensor
    status: Tensor
    prediction: Tensor
    margin: Tensor
    adversarial: Tensor
    error: str | None = None
    notes: dict[str, Any] = field(default_factory=dict)

    @property
    def path(self) -> Path:
        """Where in the ledger it lies."""
        return unit_path(self.rung, self.attack, self.chunk)

    def to_bytes(self) -> bytes:
        """Serialise, with a digest of everything in it."""
        tensors = {name: getattr(self, name).detach().cpu().contiguous() for name in _TENSORS}
        header = {name: getattr(self, name) for name in _HEADER}
        header["digest"] = fingerprint.of_json([header, fingerprint.of_tensors(tensors)])
        # One key: safetensors does not keep the order of several.
        return save(tensors, {"unit": json.dumps(header, sort_keys=True)})

    @classmethod
    def from_bytes(cls, content: bytes, name: str) -> "Unit":
        """Read `to_bytes`' result.

        Args:
            content: The bytes.
            name: For the message.

        Raises:
            LedgerError: If the content is damaged or was edited.
        """
        try:
            tensors = load(content)
            length = int.from_bytes(content[:8], "little")
            header = json.loads(json.loads(content[8 : 8 + length])["__metadata__"]["unit"])
            digest = header.pop("digest")
            unit = cls(**(header | tensors))
        except Exception as error:
            raise LedgerError(f"{name} is damaged ({error}); delete it and run again to redo this part.") from None
        if digest != fingerprint.of_json([header, fingerprint.of_tensors(tensors)]):
            raise LedgerError(f"{name} was edited: its content does not have the digest it states.")
        if unit.to_bytes() != content:
            raise LedgerError(f"{name} was edited: it is not the file that an evaluation writes.")
        return unit


_TENSORS = ("indices", "status", "prediction", "margin", "adversarial")
_HEADER = ("rung", "attack", "chunk", "context", "data", "seed", "error", "notes")


def unit_path(rung: str, attack: str, chunk: int) -> Path:
    """Path of a unit relative to the ledger."""
    return Path(rung) / attack / f"{chunk:06d}.safetensors"


class Ledger:
    """The units of one run.

    Args:
        root: Folder of the ledger.
    """

    def __init__(self, root: Path) -> None:
        self.root = root

    def has(self, rung: str, attack: str, chunk: int) -> bool:
        """Whether the unit is on file."""
        return (self.root / unit_path(rung, attack, chunk)).exists()

    def read(self, rung: str, attack: str, chunk: int) -> Unit | None:
        """The unit, or None when it is not on file.

        Raises:
            LedgerError: If the file is damaged, was edited, or lies in the wrong place.
        """
        path = self.root / unit_path(rung, attack, chunk)
        try:
            content = path.read_bytes()
        except FileNotFoundError:
            return None
        unit = Unit.from_bytes(content, str(path))
        if (unit.rung, unit.attack, unit.chunk) != (rung, attack, chunk):
            raise LedgerError(f"{path} holds {unit.path}: files were moved.")
        return unit

    def write(self, unit: Unit) -> None:
        """Put a unit on file, whole or not at all."""
        write_atomically(self.root / unit.path, unit.to_bytes())

    def drop(self, rung: str, attack: str, chunk: int) -> None:
        """Forget a unit."""
        (self.root / unit_path(rung, attack, chunk)).unlink(missing_ok=True)

    def hash(self) -> str:
        """SHA-256 over the names and bytes of all units."""
        digest = hashlib.sha256()
        for path in sorted(self.root.rglob("*.safetensors")):
            digest.update(f"{path.relative_to(self.root).as_posix()} ".encode())
            digest.update(hashlib.sha256(path.read_bytes()).digest())
        return digest.hexdigest()


class UnitCache:
    """Units of attacks on the bare classifier, kept across runs.

    A unit is found by what it depends on (classifier, attack, radius, seed, versions, and the chunk's images and
    labels), never by the purifier.

    Args:
        root: Folder of the cache.
    """

    def __init__(self, root: Path) -> None:
        self.root = root

    def _path(self, context: str, attack: str, chunk: int, data: str) -> Path:
        return self.root / context[:24] / attack / f"{chunk:06d}-{data[:24]}.safetensors"

    def read(self, rung: str, context: str, attack: str, chunk: int, data: str) -> Unit | None:
        """The unit with this context and data, or None; a damaged one is dropped, since it can be made again."""
        path = self._path(context, attack, chunk, data)
        try:
            unit = Unit.from_bytes(path.read_bytes(), str(path))
        except FileNotFoundError:
            return None
        except LedgerError:
            path.unlink(missing_ok=True)
            return None
        same = (unit.rung, unit.attack, unit.chunk, unit.context, unit.data) == (rung, attack, chunk, context, data)
        return unit if same else None

    def write(self, unit: Unit) -> None:
        """Keep a unit; one that ended in an exception is not kept."""
        if unit.error is None:
            write_atomically(self._path(unit.context, unit.attack, unit.chunk, unit.data), unit.to_bytes())


def write_atomically(path: Path, content: bytes) -> None:
    """Write a file so that a kill or a power cut leaves the old state or the new one, nothing between.

    Args:
        path: The file; its folder is made when missing.
        content: Its bytes.

    Raises:
        OSError: If the disk is full or not writable; nothing that was on file is lost.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=".", suffix=".tmp")
    try:
        with os.fdopen(handle, "wb") as stream:
            stream.write(content)
            stream.flush()
            os.fsync(stream.fileno())
        os.chmod(name, 0o644)
        os.replace(name, path)
    except OSError as error:
        Path(name).unlink(missing_ok=True)
        free = shutil.disk_usage(path.parent).free // 2**20
        raise OSError(
            error.errno,
            f"could not write {path} ({error.strerror}; {free} MiB free). Nothing on file is lost:"
            " make room and run the same command again",
        ) from error
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def empty_images(images: Tensor) -> Tensor:
    """No images of the shape `(C, H, W)` of `images` `(B, C, H, W)`."""
    return torch.empty((0, *images.shape[1:]), dtype=torch.float32)
