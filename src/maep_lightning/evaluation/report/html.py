"""`report.html`: the report as one HTML file that needs nothing else: no script, no server, no picture beside it."""

import base64
import io
from html import escape
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from maep_lightning.evaluation.files import write_atomically
from maep_lightning.evaluation.ledger import Ledger, Status
from maep_lightning.evaluation.report.gallery import Exhibit, exhibits
from maep_lightning.evaluation.report.robustbench import reasons_against
from maep_lightning.evaluation.results import Results
from maep_lightning.evaluation.rungs import Rung

STYLE = """
:root{color-scheme:light dark;--ink:#1c1e21;--soft:#5d636b;--line:#d9dce1;--paper:#fff;--bar:#7a93b8;--bare:#b4bac4;
--head:#b5482e;--good:#2e7d4f;--warn:#a06a00;--bad:#b3261e}
@media(prefers-color-scheme:dark){:root{--ink:#e6e7ea;--soft:#9aa1ab;--line:#3a3f47;--paper:#15171a;--bar:#6f8fc0;
--bare:#5b626d;--head:#e0785c;--good:#6cc08f;--warn:#e0b04a;--bad:#f2857d}}
body{font:15px/1.5 system-ui,sans-serif;color:var(--ink);background:var(--paper);max-width:60rem;margin:2rem auto;
padding:0 1rem}
h1{font-size:1.5rem;margin:0 0 .5rem}h2{font-size:1.1rem;margin:2.2rem 0 .6rem}
p{margin:.5rem 0}.soft{color:var(--soft)}.scroll{overflow-x:auto}
.honesty{border-left:4px solid var(--head);padding:.4rem .9rem;margin:1rem 0}
.alarm{border:2px solid var(--bad);color:var(--bad);padding:.5rem .9rem;font-weight:600}
table{border-collapse:collapse;font-variant-numeric:tabular-nums;font-size:.9rem}
td,th{padding:.25rem .55rem;border-bottom:1px solid var(--line);text-align:left;vertical-align:top}
td.n,th.n{text-align:right}td.n{white-space:nowrap}th{font-weight:600;vertical-align:bottom}
th.n{max-width:6.5rem}
.pass{color:var(--good)}.warn{color:var(--warn);font-weight:600}.fail{color:var(--bad);font-weight:700}
.skip{color:var(--soft)}
.gallery td{border:0;padding:.15rem .3rem;text-align:center;font-size:.75rem;line-height:1.2}
.gallery td.side{text-align:right;color:var(--soft);vertical-align:middle;white-space:nowrap}
.gallery img{width:72px;height:72px;image-rendering:pixelated;display:block;margin:auto}
svg text{fill:var(--ink);font:13px system-ui,sans-serif}svg text.soft{fill:var(--soft)}
code{font-size:.85em;overflow-wrap:anywhere}
"""

READINGS = ("mean_draw", "majority", "any_of_m")


def write_page(
    results: Results,
    rungs: list[Rung],
    ledger: Ledger,
    images: Tensor,
    labels: Tensor,
    honesty: str,
    knows: dict[str, str],
    reading: str,
    path: Path,
) -> None:
    """Write `report.html`.

    Args:
        results: What was found.
        rungs: The rungs.
        ledger: Where the attacked images are.
        images: The evaluated images, `(N, C, H, W)`, uint8 or in [0, 1].
        labels: `(N,)`.
        honesty: The paragraph that goes on top.
        knows: What the attacker knows, by threat.
        reading: How the accuracies of a stochastic defence are to be read; `{draws}` stands for their number.
        path: The file.
    """
    subject, values = results.subject, results.manifest.values
    title = f"{subject.defence if values['purifier_weights'] else 'No purifier'} before {subject.classifier}"
    parts = [
        f"<h1>{escape(title)}</h1>",
        f'<p class="honesty">{escape(honesty.replace("**", ""))}</p>',
        *_alarms(results),
        "<h2>The staircase</h2>",
        '<p class="soft">Accuracy under each threat model on the same images; whiskers are Wilson 95 % intervals.</p>',
        f'<div class="scroll">{staircase(results)}</div>',
        _knows(results, knows),
        *_readings(results, reading),
        *_retention(results),
        "<h2>Class by class</h2>",
        _classes(results, labels),
        *_gallery(exhibits(results, rungs, ledger, images, labels)),
        *_sanity(results),
        "<h2>RobustBench</h2>",
        _admissible(results),
        "<h2>Where this comes from</h2>",
        _provenance(results),
    ]
    page = (
        '<!doctype html><html lang="en"><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        f"<title>{escape(title)}</title><style>{STYLE}</style><body>{''.join(parts)}</body></html>\n"
    )
    write_atomically(path, page.encode())


def staircase(results: Results) -> str:
    """The accuracy of each rung as a bar with its interval, in the order of the ladder, as SVG."""
    left, width, height, top = 190, 470, 30, 6
    total = top + height * len(results.rows) + 26
    svg = [f'<svg viewBox="0 0 860 {total}" width="860" role="img" aria-label="Accuracy under each threat model">']
    for share in (0, 0.25, 0.5, 0.75, 1):
        x = left + share * width
        svg.append(f'<line x1="{x}" x2="{x}" y1="{top}" y2="{total - 24}" stroke="var(--line)"/>')
        svg.append(f'<text class="soft" x="{x}" y="{total - 8}" text-anchor="middle">{100 * share:.0f} %</text>')
    for number, (rung, row) in enumerate(results.by_rung.items()):
        y = top + number * height
        low, high = (left + width * end for end in row["ci95"])
        known = row["acc_robust"]
        colour = "bare" if row["purifier"] is None else "head" if row["threat"] == "worst" else "bar"
        name = rung.replace("undefended-", "undefended ").replace("none", "clean")
        svg.append(f'<text x="{left - 10}" y="{y + 19}" text-anchor="end">{escape(name)}</text>')
        if known is not None:
            svg.append(
                f'<rect x="{left}" y="{y + 5}" width="{max(known * width, 1):.1f}" height="{height - 10}"'
                f' fill="var(--{colour})"><title>{escape(row["attack"])}</title></rect>'
            )
        middle = y + height / 2
        svg.append(f'<path d="M{low:.1f} {middle}H{high:.1f}M{low:.1f} {middle - 4}v8M{high:.1f} {middle - 4}v8"')
        svg.append(' stroke="var(--ink)" fill="none"/>')
        text = f"{100 * known:.1f} %" if known is not None else "no figure, only bounds"
        ends = f"{100 * row['ci95'][0]:.1f} to {100 * row['ci95'][1]:.1f}"
        svg.append(f'<text x="{left + width + 14}" y="{y + 19}">{text} <tspan opacity=".65">({ends})</tspan></text>')
    return "".join([*svg, "</svg>"])


def _alarms(results: Results) -> list[str]:
    alarms = []
    if results.sanity is not None and results.sanity.withheld:
        names = ", ".join(f"{check.id} ({check.name})" for check in results.sanity.failed)
        alarms.append(f'<p class="alarm">Headline withheld: {escape(names)} failed.</p>')
    if not all(outcome.complete for outcome in results.outcomes.values()):
        alarms.append('<p class="alarm">Incomplete: errors or missing parts leave only bounds.</p>')
    return alarms


def _knows(results: Results, knows: dict[str, str]) -> str:
    attacked = [row for row in results.rows if row["threat"] != "none"]
    rows = dict.fromkeys(
        (row["threat"], row["attack"]) for row in sorted(attacked, key=lambda row: row["purifier"] is None)
    )
    cells = [[escape(threat), escape(knows[threat]), escape(attack)] for threat, attack in rows]
    return _table(["threat model", "the attacker knows", "attack"], cells)


def _retention(results: Results) -> list[str]:
    rows = []
    for rung, row in results.by_rung.items():
        if row["purifier"] is not None and row["acc_robust"] is not None and row["acc_undefended_clean"]:
            share = row["acc_robust"] / row["acc_undefended_clean"]
            rows.append([escape(rung.replace("none", "clean")), f"{100 * share:.1f} %"])
    if not rows:
        return []
    note = "Accuracy over the clean accuracy of the undefended classifier: what of it the purifier keeps."
    return ["<h2>Retention</h2>", f'<p class="soft">{note}</p>', _table(["threat model", "retention"], rows, right=1)]


def _readings(results: Results, reading: str) -> list[str]:
    rows = {rung: row for rung, row in results.by_rung.items() if "readings" in row}
    if not rows:
        return []
    draws = next(iter(rows.values()))["readings"]["draws"]
    cells = [
        [rung.replace("none", "clean"), *(f"{100 * row['readings'][name]:.1f} %" for name in READINGS)]
        for rung, row in rows.items()
    ]
    head = ["threat model", "mean of a draw", f"majority of {draws}", f"any of {draws}"]
    note = f'<p class="soft">{escape(reading.format(draws=draws))}</p>'
    return ["<h2>A stochastic defence, read three ways</h2>", note, _table(head, cells, right=1)]


def _classes(results: Results, labels: Tensor) -> str:
    shown = {
        name.replace("-none", " clean").replace("-whitebox", " whitebox"): outcome
        for name, outcome in results.outcomes.items()
    }
    rows = []
    for label in sorted(set(labels.tolist())):
        own = labels == label
        cells = [escape(results.subject.class_name(label)), str(int(own.sum()))]
        for outcome in shown.values():
            status = outcome.status[own]
            right = int((status == Status.ROBUST).sum())
            open_ = int(((status == Status.ERROR) | (status == Status.NOT_RUN)).sum())
            cells.append(f"{100 * right / len(status):.0f} %" + (f" +{open_}?" if open_ else ""))
        rows.append(cells)
    return _table(["class", "n", *(name.replace("none", "clean") for name in shown)], rows, right=1)


def _gallery(shown: list[Exhibit]) -> list[str]:
    parts = []
    for exhibit in shown:
        parts += [f"<h2>{escape(exhibit.title)}</h2>", f'<p class="soft">{escape(exhibit.note)}</p>']
        lines = []
        for side, pictures, texts in exhibit.rows:
            cells = "".join(
                f'<td><img alt="{escape(side)}" src="{_data_uri(picture)}">{_mark(text)}</td>'
                for picture, text in zip(pictures, texts, strict=True)
            )
            lines.append(f'<tr><td class="side">{escape(side)}</td>{cells}</tr>')
        parts.append(f'<div class="scroll"><table class="gallery">{"".join(lines)}</table></div>')
    return parts


def _mark(text: str) -> str:
    return f'<span class="{"fail" if text.startswith("✗") else "soft"}">{escape(text)}</span>'


def _sanity(results: Results) -> list[str]:
    if results.sanity is None:
        return []
    cells = [
        [check.id, escape(check.name), f'<span class="{check.verdict}">{check.verdict}</span>', escape(check.detail)]
        for check in results.sanity.checks
    ]
    note = f"On the first {results.sanity.samples} images. Passing is no proof."
    return [
        "<h2>Sanity battery</h2>",
        f'<p class="soft">{note}</p>',
        _table(["", "check", "verdict", "finding"], cells),
    ]


def _admissible(results: Results) -> str:
    against = reasons_against(results)
    if not against:
        return "<p>The white-box figure meets RobustBench's conditions.</p>"
    return f"<p>Not admissible: {escape('; '.join(against))}.</p>"


def _provenance(results: Results) -> str:
    run: dict[str, Any] = results.run
    rows = {
        "command": run["command"],
        "commit": f"{run['commit'] or 'unknown'}{' with local changes' if run['dirty'] else ''}",
        "versions": ", ".join(f"{name} {number}" for name, number in run["versions"].items()),
        "hardware": run["hardware"],
        "seconds of the last call": str(run["seconds"]),
        "plan": results.manifest.hash,
        "ledger": results.ledger_hash,
    }
    return _table(["", ""], [[escape(name), f"<code>{escape(value)}</code>"] for name, value in rows.items()])


def _table(head: list[str], rows: list[list[str]], right: int | None = None) -> str:
    """A table of cells that are HTML already; from column `right` on they are numbers."""

    def line(tag: str, cells: list[str]) -> str:
        numbers = [right is not None and column >= right for column in range(len(cells))]
        return "".join(
            f"<{tag}{' class=n' if number else ''}>{cell}</{tag}>" for cell, number in zip(cells, numbers, strict=True)
        )

    body = "".join(f"<tr>{line('td', cells)}</tr>" for cells in rows)
    top = f"<tr>{line('th', head)}</tr>" if any(head) else ""
    return f'<div class="scroll"><table>{top}{body}</table></div>'


def _data_uri(picture: Tensor) -> str:
    """An image `(C, H, W)` in [0, 1] as text."""
    from PIL import Image

    pixels = (picture.clamp(0, 1) * 255).round().to(torch.uint8).permute(1, 2, 0).cpu().numpy()
    stream = io.BytesIO()
    Image.fromarray(pixels if pixels.shape[2] == 3 else pixels[:, :, 0]).save(stream, format="PNG")
    return "data:image/png;base64," + base64.b64encode(stream.getvalue()).decode()
