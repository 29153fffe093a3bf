"""`report.png`, the figure of a report: clean, attacked and purified images, and the error that is left."""

from pathlib import Path

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from torch import Tensor

from maep_lightning.evaluation.inputs import pixels
from maep_lightning.evaluation.ledger import Ledger
from maep_lightning.evaluation.report.captions import captions
from maep_lightning.evaluation.results import Results
from maep_lightning.evaluation.rungs import CLEAN, STRONGEST_FIRST, UNDEFENDED_ATTACKED, Rung, of_kinds

COLUMNS = 8
MOST_THREATS = 3
"""Threat models that get a place: blind, and the strongest."""
WIDE, HIGH = 1.25, 1.5
"""Inches of a picture's place."""


def draw(results: Results, rungs: list[Rung], ledger: Ledger, images: Tensor, labels: Tensor, path: Path) -> None:
    """Draw the first images, whatever became of them, for each threat model.

    Args:
        results: What was found.
        rungs: The rungs.
        ledger: Where the attacked images are.
        images: `(N, C, H, W)`, uint8 or in [0, 1].
        labels: `(N,)`.
        path: Of the figure.
    """
    by_name = {rung.name: rung for rung in rungs}
    defended = by_name[CLEAN].judge if CLEAN in by_name else None
    bare = rungs[0].judge
    count = min(COLUMNS, len(labels))
    labels = labels[:count].to(bare.device)
    clean = pixels(images[:count], bare.device)
    threats = of_kinds(results.plan.threats, ("blind", *STRONGEST_FIRST))
    source = {threat: threat for threat in threats} | {"blind": UNDEFENDED_ATTACKED}
    if defended is None:
        threats = ["whitebox"] if UNDEFENDED_ATTACKED in by_name else []
        source = {"whitebox": UNDEFENDED_ATTACKED}
    first = {threat.partition(":")[0]: threat for threat in reversed(threats) if source[threat] in by_name}
    threats = [threat for threat in threats if threat in first.values()][:MOST_THREATS]
    rows: list[tuple[str, Tensor, list[str]]] = [("clean", clean, captions(bare, clean, labels, results))]
    for threat in threats:
        attacked, found = _attacked(by_name[source[threat]], ledger, clean, results.plan.chunk_size)
        named = threat.replace(":", ":\n")
        title = f"{named}\nattacked" if defended else "attacked"
        names = captions(bare, attacked, labels, results)
        rows.append(
            (
                title,
                attacked,
                [
                    text if hit else text if text.startswith("✗") else "✓ no attack found"
                    for text, hit in zip(names, found, strict=True)
                ],
            )
        )
        if defended is not None:
            purified = defended.purify(attacked)
            rows.append((f"{named}\npurified", purified, captions(bare, purified, labels, results)))
            if purified.shape == clean.shape:
                error = (purified - clean).abs().mul(10).clamp(0, 1)
                rows.append((f"{named}\nerror x10", error, [""] * count))
    wide, high = WIDE * count + 0.9, HIGH * len(rows) + 0.5
    figure = Figure(figsize=(wide, high))
    # One pair of axes for all pictures: a pair for each would take most of the time of a report.
    axis = figure.add_axes((0.8 / wide, 0.1 / high, WIDE * count / wide, HIGH * len(rows) / high))
    axis.set_axis_off()
    height, width = clean.shape[-2:]
    across, down = 0.92 * min(1, width / height), 0.92 * WIDE / HIGH * min(1, height / width)
    for row, (title, pictures, texts) in enumerate(rows):
        axis.text(-0.1, row + 0.6, title, fontsize=8, rotation="vertical", ha="right", va="center", ma="center")
        for column, (picture, text) in enumerate(zip(pictures, texts, strict=True)):
            left, top = column + (1 - across) / 2, row + 1 - down
            shown = picture.permute(1, 2, 0).squeeze(-1).cpu().numpy()
            axis.imshow(
                shown, cmap="gray", vmin=0, vmax=1, extent=(left, left + across, top + down, top), aspect="auto"
            )
            colour = "firebrick" if text.startswith("✗") else "black"
            axis.text(column + 0.5, top - 0.03, text, fontsize=7, color=colour, ha="center")
    axis.set_xlim(0, count)
    axis.set_ylim(len(rows), 0)
    values = results.manifest.values
    figure.suptitle(
        f"{results.subject.dataset}, {values['norm']} eps {values['eps']}: label predicted by the classifier",
        fontsize=9,
        y=1 - 0.2 / high,
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    FigureCanvasAgg(figure).print_figure(str(path), dpi=120)


def _attacked(rung: Rung, ledger: Ledger, clean: Tensor, chunk_size: int) -> tuple[Tensor, list[bool]]:
    """The attacked versions of the first images, and where there is one."""
    attacked, found = clean.clone(), [False] * len(clean)
    for chunk in range(-(-len(clean) // chunk_size)):
        for attack in rung.attacks:
            unit = ledger.read(rung.name, attack, chunk)
            if unit is None:
                continue
            for index, image in unit.breaking():
                if index < len(clean):
                    attacked[index], found[index] = image.to(clean.device), True
    return attacked, found
