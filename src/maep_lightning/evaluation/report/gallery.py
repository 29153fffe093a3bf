"""Which images `report.html` shows: what the purifier saves, and what still breaks."""

from dataclasses import dataclass

from torch import Tensor

from maep_lightning.attacks.target import Target
from maep_lightning.evaluation.inputs import pixels
from maep_lightning.evaluation.ledger import Ledger, Status
from maep_lightning.evaluation.report.captions import captions
from maep_lightning.evaluation.results import Results
from maep_lightning.evaluation.rungs import CLEAN, UNDEFENDED_ATTACKED, Rung, of_kinds

COLUMNS = 8


@dataclass(frozen=True)
class Exhibit:
    """Some samples, in rows of pictures.

    Attributes:
        title: Of the exhibit.
        note: What is to be seen.
        rows: What a row shows, its pictures `(k, C, H, W)` in [0, 1], and a text for each.
    """

    title: str
    note: str
    rows: list[tuple[str, Tensor, list[str]]]


def exhibits(results: Results, rungs: list[Rung], ledger: Ledger, images: Tensor, labels: Tensor) -> list[Exhibit]:
    """For each threat that broke something, the first samples that it broke; and blind ones that were saved.

    Args:
        results: What was found.
        rungs: The rungs.
        ledger: Where the attacked images are.
        images: `(N, C, H, W)`, uint8 or in [0, 1].
        labels: `(N,)`.
    """
    by_name = {rung.name: rung for rung in rungs}
    defended = by_name[CLEAN].judge if CLEAN in by_name else None
    shown = []
    if "blind" in by_name and UNDEFENDED_ATTACKED in by_name:
        fell = results.outcomes[UNDEFENDED_ATTACKED].status == Status.BROKEN
        chosen = (fell & (results.outcomes["blind"].status == Status.ROBUST)).nonzero().squeeze(1)[:COLUMNS]
        note = "The attack on the bare classifier succeeds, and the purifier undoes it."
        shown += _exhibit("Saved from the blind attacker", note, chosen, by_name[UNDEFENDED_ATTACKED], defended,
                          results, ledger, images, labels)  # fmt: skip
    name = next((name for name in of_kinds(by_name) if results.outcomes[name].count(Status.BROKEN)), None)
    if defended is None:
        name = UNDEFENDED_ATTACKED if UNDEFENDED_ATTACKED in by_name else None
    if name is not None:
        chosen = (results.outcomes[name].status == Status.BROKEN).nonzero().squeeze(1)[:COLUMNS]
        title = f"What still breaks: {name.replace('undefended-', '')}"
        note = "Each attacked image was judged again by a float32 forward pass of the whole."
        shown += _exhibit(title, note, chosen, by_name[name], defended, results, ledger, images, labels)
    return shown


def _exhibit(
    title: str,
    note: str,
    chosen: Tensor,
    rung: Rung,
    defended: Target | None,
    results: Results,
    ledger: Ledger,
    images: Tensor,
    labels: Tensor,
) -> list[Exhibit]:
    if len(chosen) == 0:
        return []
    device = rung.judge.device
    clean = pixels(images[chosen], device)
    attacked = clean.clone()
    wanted = {int(index): place for place, index in enumerate(chosen)}
    for chunk in sorted({index // results.plan.chunk_size for index in wanted}):
        for attack in rung.attacks:
            unit = ledger.read(rung.name, attack, chunk)
            if unit is None:
                continue
            for index, image in unit.breaking():
                if index in wanted:
                    attacked[wanted[index]] = image.to(device)
    truth = labels[chosen].to(device)
    whole = defended or rung.judge
    rows = [
        ("clean", clean, captions(whole, clean, truth, results)),
        ("attacked", attacked, captions(rung.judge, attacked, truth, results)),
    ]
    blank = [""] * len(chosen)
    if defended is not None:
        purified = defended.purify(attacked)
        rows.append(("purified", purified, captions(defended, attacked, truth, results)))
        if purified.shape == clean.shape:
            rows.append(("error x10", ((purified - clean).abs() * 10).clamp(0, 1), blank))
    else:
        rows.append(("noise x10", ((attacked - clean) * 10 / 2 + 0.5).clamp(0, 1), blank))
    return [Exhibit(title, note, rows)]
