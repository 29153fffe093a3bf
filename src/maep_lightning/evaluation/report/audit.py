"""`audit.csv`, the audit log: what became of each sample under each attack, as a table that pandas reads."""

import csv
import io
from pathlib import Path

import torch
from torch import Tensor

from maep_lightning.evaluation.files import write_atomically
from maep_lightning.evaluation.fingerprint import of_tensors
from maep_lightning.evaluation.ledger import Ledger, Status
from maep_lightning.evaluation.rungs import Rung

COLUMNS = (
    *("index", "sample", "label", "rung", "attack", "status", "prediction", "margin", "right", "draws"),
    *("stored", "seed", "chunk"),
)


def write_audit(rungs: list[Rung], ledger: Ledger, images: Tensor, labels: Tensor, chunk_size: int, path: Path) -> None:
    """Write one line for each sample and attack that was tried on it.

    Columns: `index`, the global number; `sample`, the start of the SHA-256 of the image; `label`; `rung` and `attack`;
    `status` (`ROBUST`, `BROKEN`, `CLEAN_WRONG`, `ERROR`), `prediction` and `margin` (logit of the label minus the
    largest other) of the judge on the attacked image; `right` of its `draws` gave the label; `stored`, the row of the
    attacked image in `adversarial` of the ledger's file, empty where none is stored; `seed` and `chunk` of the attack.

    Args:
        rungs: The rungs.
        ledger: The ledger.
        images: The evaluated images, `(N, C, H, W)`.
        labels: `(N,)`.
        chunk_size: Samples of a chunk.
        path: The file.
    """
    samples = [of_tensors({"image": image})[:16] for image in images]
    truth = labels.tolist()
    stream = io.StringIO()
    table = csv.writer(stream, lineterminator="\n")
    table.writerow(COLUMNS)
    for rung in rungs:
        for chunk in range(-(-len(truth) // chunk_size)):
            for attack in rung.attacks:
                unit = ledger.read(rung.name, attack, chunk)
                if unit is None:
                    continue
                places = (torch.cumsum(unit.stored, 0) - 1).tolist()
                for row, index in enumerate(unit.indices.tolist()):
                    status = Status(int(unit.status[row]))
                    table.writerow(
                        (
                            index,
                            samples[index],
                            truth[index],
                            rung.name,
                            attack,
                            status.name,
                            int(unit.prediction[row]),
                            f"{float(unit.margin[row]):.7g}",
                            int(unit.right[row]),
                            unit.draws,
                            places[row] if unit.stored[row] else "",
                            unit.seed,
                            chunk,
                        )
                    )
    write_atomically(path, stream.getvalue().encode())
