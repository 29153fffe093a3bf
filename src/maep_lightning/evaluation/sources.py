"""`sources.json`: where the networks and images of a run came from."""

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from maep_lightning.evaluation.files import write_atomically
from maep_lightning.models.policies import CHUNK

SOURCES = "sources.json"


@dataclass(frozen=True)
class Sources:
    """Where the networks and images of a run came from, so that it can be checked without being told again.

    Args:
        classifier: File of the classifier.
        purifier: File of the purifier, or its text such as `jpeg:75`; None without one.
        repeats: Options of `RepeatedPurifier` that were set; None for the purifier as it is.
        surrogate: File of the surrogate classifier; None without one.
        classifier_name: What network the classifier's file holds, if it does not say it itself.
        surrogate_name: What network the surrogate's file holds, likewise.
        num_classes: Number of classes K, needed with such a name.
        dataset: Name of a registered data set, or `python:MODULE:NAME` for one of an importable module.
        split: Its split.
        root: Folder that holds data sets; None for the default one.
        images: Whatever else was asked of the data set, by the names of the DataModule's options.
        policy: Resolution policy of the purifier.
        chunk: Tiles that it purified at once.
    """

    classifier: str | None = None
    purifier: str | None = None
    surrogate: str | None = None
    classifier_name: str | None = None
    surrogate_name: str | None = None
    num_classes: int | None = None
    dataset: str | None = None
    split: str = "test"
    root: str | None = None
    repeats: dict[str, Any] | None = None
    images: dict[str, Any] = field(default_factory=dict)
    policy: str = "native"
    chunk: int = CHUNK

    def write(self, run_dir: Path) -> None:
        """Put them beside the ledger."""
        write_atomically(run_dir / SOURCES, (json.dumps(asdict(self), indent=2) + "\n").encode())

    @classmethod
    def read(cls, run_dir: Path) -> "Sources":
        """Those of a run folder; nothing known where the file is missing.

        Raises:
            ValueError: If the file is no such thing.
        """
        path = run_dir / SOURCES
        if not path.exists():
            return cls()
        try:
            return cls(**json.loads(path.read_text()))
        except (ValueError, TypeError) as error:
            raise ValueError(f"{path} is damaged ({error}); delete it and name the files by options.") from None
