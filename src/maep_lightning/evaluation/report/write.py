"""The report: `report.md` with `report.png` beside it, `report.html` by itself, and `audit.csv` for programs."""

import json
from pathlib import Path

from torch import Tensor

from maep_lightning.evaluation.files import write_atomically
from maep_lightning.evaluation.ledger import Ledger
from maep_lightning.evaluation.report.audit import write_audit
from maep_lightning.evaluation.report.figure import draw
from maep_lightning.evaluation.report.html import write_page
from maep_lightning.evaluation.report.markdown import KNOWS, READINGS, honesty, markdown, read_reference
from maep_lightning.evaluation.report.robustbench import robustbench_fields
from maep_lightning.evaluation.results import PICTURES, Results
from maep_lightning.evaluation.rungs import Rung


def write_report(
    results: Results,
    rungs: list[Rung],
    ledger: Ledger,
    images: Tensor,
    labels: Tensor,
    run_dir: Path,
    reference: str | Path | None = None,
) -> None:
    """Write all that needs no picture: `report.md`, `robustbench.json`, `audit.csv` and, last, `results.json`.

    Pictures of earlier results are removed before, so that `report.html` is there only if nothing is left to do.

    Args:
        results: What was found.
        rungs: The rungs.
        ledger: Where the attacked images are.
        images: The evaluated images, `(N, C, H, W)`, uint8 or in [0, 1].
        labels: `(N,)`.
        run_dir: The run folder.
        reference: A JSON file of published rows, see `read_reference`.

    Raises:
        ValueError: If the reference file is not as it should be.
    """
    published = read_reference(reference, results) if reference is not None else []
    write_atomically(run_dir / "report.md", markdown(results, published).encode())
    fields = json.dumps(robustbench_fields(results), indent=2) + "\n"
    write_atomically(run_dir / "robustbench.json", fields.encode())
    write_audit(rungs, ledger, images, labels, results.plan.chunk_size, run_dir / "audit.csv")
    for name in PICTURES:
        (run_dir / name).unlink(missing_ok=True)
    results.write(run_dir / "results.json")


def write_pictures(
    results: Results, rungs: list[Rung], ledger: Ledger, images: Tensor, labels: Tensor, run_dir: Path
) -> None:
    """Write `report.png` and `report.html`, whose networks run once more.

    Args:
        results: What was found.
        rungs: The rungs.
        ledger: Where the attacked images are.
        images: The evaluated images, `(N, C, H, W)`, uint8 or in [0, 1].
        labels: `(N,)`.
        run_dir: The run folder.
    """
    figure, page = (run_dir / name for name in PICTURES)
    draw(results, rungs, ledger, images, labels, figure)
    write_page(results, rungs, ledger, images, labels, honesty(results), KNOWS, READINGS, page)
