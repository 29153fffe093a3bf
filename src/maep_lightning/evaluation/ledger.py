"""The ledger: one file for every (rung, attack, chunk), written whole or not at all.

The bytes of a file are a function of the plan and the chunk alone: no time, host, rank or path is in it. A killed run
goes on with the files that are missing, and any number of processes leaves the same bytes.
"""

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass, field, fields
from enum import IntEnum
from pathlib import Path
from typing import Any, ClassVar, Self

import torch
from safetensors.torch import load, save
from torch import Tensor

from maep_lightning.evaluation import fingerprint
from maep_lightning.evaluation.files import write_atomically


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
class Record:
    """What is on file of one attack on one chunk: tensors, and a header of JSON values.

    Attributes:
        rung: Name of the rung.
        attack: Name of the attack.
        chunk: Number of the chunk.
        context: Fingerprint of all that the content depends on besides the chunk's own data.
        data: Fingerprint of the chunk's images and labels.
        seed: Of the attack.
    """

    TENSORS: ClassVar[tuple[str, ...]] = ()

    rung: str
    attack: str
    chunk: int
    context: str
    data: str
    seed: int

    def to_bytes(self) -> bytes:
        """Serialise, with a digest of everything in it."""
        tensors = {name: getattr(self, name).detach().cpu().contiguous() for name in self.TENSORS}
        header = {item.name: getattr(self, item.name) for item in fields(self) if item.name not in self.TENSORS}
        header["digest"] = fingerprint.of_json([header, fingerprint.of_tensors(tensors)])
        # One key: safetensors does not keep the order of several.
        return save(tensors, {"unit": json.dumps(header, sort_keys=True)})

    @classmethod
    def from_bytes(cls, content: bytes, name: str) -> Self:
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
            record = cls(**(header | tensors))
        except Exception as error:
            raise LedgerError(f"{name} is damaged ({error}); delete it and run again to redo this part.") from None
        if digest != fingerprint.of_json([header, fingerprint.of_tensors(tensors)]):
            raise LedgerError(f"{name} was edited: its content does not have the digest it states.")
        if record.to_bytes() != content:
            raise LedgerError(f"{name} was edited: it is not the file that an evaluation writes.")
        return record


@dataclass(frozen=True)
class Unit(Record):
    """What one attack did to one chunk, judged: a file of the ledger.

    Attributes:
        indices: `(k,)` int64, the global numbers of the samples attacked.
        status: `(k,)` uint8, a `Status` each.
        prediction: `(k,)` int64, of the judge on the attacked image.
        margin: `(k,)` float32, logit of the label minus the largest other (of several draws, see `Verdict`).
        right: `(k,)` int32, draws of the judge that gave the label.
        stored: `(k,)` bool, whether the attacked image is on file: where it breaks the sample, and where it is on a
            stochastic judge that at least one draw misclassifies.
        adversarial: `(m, C, H, W)` float32 in [0, 1], the attacked images of these, in their order.
        draws: Of the judge for each image.
        error: Text of an exception that ended the attack, or None.
        notes: Counts and warnings of the attack.
    """

    TENSORS = ("indices", "status", "prediction", "margin", "right", "stored", "adversarial")

    indices: Tensor
    status: Tensor
    prediction: Tensor
    margin: Tensor
    right: Tensor
    stored: Tensor
    adversarial: Tensor
    draws: int = 1
    error: str | None = None
    notes: dict[str, Any] = field(default_factory=dict)

    @property
    def path(self) -> Path:
        """Where in the ledger it lies."""
        return unit_path(self.rung, self.attack, self.chunk)

    def breaking(self) -> Iterator[tuple[int, Tensor]]:
        """Global numbers and attacked images `(C, H, W)` of the samples that are broken."""
        for row, image in zip(self.stored.nonzero().squeeze(1).tolist(), self.adversarial, strict=True):
            if self.status[row] == Status.BROKEN:
                yield int(self.indices[row]), image


def unit_path(rung: str, attack: str, chunk: int) -> Path:
    """Path of a unit relative to the ledger."""
    # A colon, as in `blind:fgsm`, is in no file name of Windows and of GitHub's artifacts.
    return Path(rung.replace(":", "-")) / attack / f"{chunk:06d}.safetensors"


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


def empty_images(images: Tensor) -> Tensor:
    """No images of the shape `(C, H, W)` of `images` `(B, C, H, W)`."""
    return torch.empty((0, *images.shape[1:]), dtype=torch.float32)
