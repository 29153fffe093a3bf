"""The cache: attacks that no purifier has a part in, kept across runs.

A record is found by what it depends on (the attacked network, attack, radius, seed, versions, and the chunk's images
and labels), so that the next purifier is judged on it by forward passes alone.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from torch import Tensor

from maep_lightning.evaluation.files import write_atomically
from maep_lightning.evaluation.ledger import LedgerError, Record, Unit


@dataclass(frozen=True)
class Made(Record):
    """What one attack made of a whole chunk, before anybody judged it.

    Attributes:
        images: `(b, C, H, W)` float32.
        unreliable: `(b,)` bool, samples whose attack did not work, so that surviving it says nothing.
        notes: Counts and warnings of the attack.
    """

    TENSORS = ("images", "unreliable")

    images: Tensor
    unreliable: Tensor
    notes: dict[str, Any]


Kind = TypeVar("Kind", Unit, Made)


class AttackCache:
    """A folder of records.

    Args:
        root: The folder.
    """

    def __init__(self, root: Path) -> None:
        self.root = root

    def path(self, context: str, attack: str, chunk: int, data: str) -> Path:
        """Where a record lies."""
        return self.root / context[:24] / attack / f"{chunk:06d}-{data[:24]}.safetensors"

    def read(self, kind: type[Kind], rung: str, context: str, attack: str, chunk: int, data: str) -> Kind | None:
        """The record with this context and data, or None; a damaged one is dropped, since it can be made again."""
        path = self.path(context, attack, chunk, data)
        try:
            record = kind.from_bytes(path.read_bytes(), str(path))
        except FileNotFoundError:
            return None
        except LedgerError:
            path.unlink(missing_ok=True)
            return None
        found = (record.rung, record.attack, record.chunk, record.context, record.data)
        return record if found == (rung, attack, chunk, context, data) else None

    def write(self, record: Unit | Made) -> None:
        """Keep a record; not one that ended in an exception."""
        if isinstance(record, Unit) and record.error is not None:
            return
        path = self.path(record.context, record.attack, record.chunk, record.data)
        write_atomically(path, record.to_bytes())
