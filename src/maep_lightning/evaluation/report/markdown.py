"""`report.md`: the text of the report, and what `report.html` says in the same words."""

import json
from pathlib import Path
from typing import Any

from maep_lightning.evaluation.inputs import class_mismatch
from maep_lightning.evaluation.ledger import Status
from maep_lightning.evaluation.report.robustbench import reasons_against
from maep_lightning.evaluation.results import Results
from maep_lightning.evaluation.summary import Outcome

KNOWS = {
    "none": "no attack",
    "noise": "nothing, and draws random corners of the ball",
    "transfer": "another classifier, and nothing of this one",
    "blind": "the classifier, but not the purifier",
    "blind_worst": "the classifier, but not the purifier, and shows it for each image several simple attacks",
    "square": "the logits of the whole, by queries, and no gradient",
    "bpda": "everything, but takes the purifier's gradient for that of the identity",
    "whitebox": "everything, and differentiates through all of it",
    "eot": "everything but the coins, and averages gradients over draws of them",
    "fixed_coins": "everything, and the coins, which are fixed",
    "worst": "all that the rungs above know together; the per-sample worst of them and the clean image",
}

READINGS = (
    "Each image was judged by {draws} fresh draws; the table above counts by their majority. The mean is the accuracy"
    " to expect of a single draw on the worst image found; by any of {draws}, a sample is wrong as soon as one draw is."
)


def read_reference(path: str | Path, results: Results) -> list[dict[str, Any]]:
    """Published rows for the same data set, norm and radius.

    Args:
        path: A JSON file, `{"rows": [{system, dataset, classifier, norm, eps, threat, attack, clean, robust, source}]}`
            with accuracies as fractions, or null where nothing is known.
        results: Whose data set, norm and radius count.

    Raises:
        ValueError: If the file is no such thing.
    """
    try:
        rows = json.loads(Path(path).read_text())["rows"]
        needed = ("system", "dataset", "norm", "eps", "threat", "clean", "robust", "source")
        if missing := [name for row in rows for name in needed if name not in row]:
            raise KeyError(missing[0])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} is no file of published rows ({type(error).__name__}: {error}).") from None
    values = results.manifest.values
    same = (results.subject.dataset, values["norm"], values["eps"])
    return [row for row in rows if (row["dataset"], row["norm"], row["eps"]) == same]


def markdown(results: Results, published: list[dict[str, Any]]) -> str:
    """The text of the report.

    Args:
        results: What was found.
        published: Rows of other systems, see `read_reference`.
    """
    subject, values = results.subject, results.manifest.values
    lines = [f"# {subject.defence if values['purifier_weights'] else 'No purifier'} before {subject.classifier}", ""]
    lines += [honesty(results), ""]
    if results.sanity is not None and results.sanity.withheld:
        names = ", ".join(f"{check.id} ({check.name})" for check in results.sanity.failed)
        lines += [f"**Headline withheld: {names} failed.**", ""]
    if not all(outcome.complete for outcome in results.outcomes.values()):
        lines += ["**Incomplete: errors or missing parts leave only bounds. No figure here is a result.**", ""]
    lines += [
        "| system | threat model | attack | clean | robust | 95 % interval | retention |",
        "|---|---|---|---|---|---|---|",
    ]
    lines += [_line(name, row, results) for name, row in results.by_rung.items()]
    threats = [row["threat"] for row in results.rows if row["threat"] != "none"]
    lines += ["", "The attacker knows, by threat model:", ""]
    lines += [f"- {threat}: {KNOWS[threat]}" for threat in dict.fromkeys(threats)]
    lines += [
        "",
        "Clean and robust are accuracies on the same images, counted one by one. Retention is robust accuracy over the"
        " clean accuracy of the undefended classifier. Blind figures are accuracies on images made to fool the bare"
        " classifier; an attacker who knows the purifier does better, which is what the white-box row measures.",
        "",
    ]
    if published:
        lines += ["## Published figures, same data set, norm and eps", ""]
        lines += [
            "| system | classifier | threat model | attack | clean | robust | source |",
            "|---|---|---|---|---|---|---|",
        ]
        for row in published:
            cells = (row.get("classifier") or "?", row["threat"], row.get("attack") or "?")
            lines.append(
                f"| {row['system']} | {' | '.join(cells)} | {_percent(row['clean'])} | {_percent(row['robust'])}"
                f" | {row['source']} |"
            )
        lines += [
            "",
            "They were measured by others on their classifiers and sample counts; compare within a threat model.",
            "",
        ]
    lines += _readings(results)
    lines += ["![clean, attacked, purified, error x10](report.png)", ""]
    lines += _battery(results)
    lines += ["## What was not as it should be", ""]
    lines += _troubles(results) or ["Nothing: no warning, no error, no sample left out."]
    run = results.run
    lines += [
        "",
        "## Where this comes from",
        "",
        f"- command: `{run['command']}`",
        f"- commit: {run['commit'] or 'unknown'}{' with local changes' if run['dirty'] else ''}",
        f"- versions: {', '.join(f'{name} {number}' for name, number in run['versions'].items())}",
        f"- hardware: {run['hardware']}; {run['seconds']} s in the last call",
        f"- plan: `{results.manifest.hash}`",
        f"- ledger: `{results.ledger_hash}`",
        "",
    ]
    return "\n".join(lines)


def honesty(results: Results) -> str:
    """One paragraph that says what the figures mean, for the head of a report."""
    subject, values = results.subject, results.manifest.values
    threats = ", ".join(values["threats"])
    against = reasons_against(results)
    return (
        f"**{values['norm']} eps {values['eps']}, {results.attacks}.** Threat models: {threats}."
        f" Gradient path: {_gradient_path(results)}."
        f" n = {values['n']} ({subject.dataset} {subject.split}, the first {values['n']}), Wilson 95 % intervals,"
        f" seed {values['seed']}, chunks of {values['chunk_size']}, float32 without TF32, every adversarial image"
        f" verified by a forward pass. Hardware: {results.run['hardware']}. Trained on: {subject.training_data}."
        f" RobustBench-admissible: {'no (' + '; '.join(against) + ')' if against else 'yes'}."
    )


def _gradient_path(results: Results) -> str:
    if results.sanity is None:
        return "not checked"
    checks = [results.sanity.check(id_) for id_ in ("S1", "S2")]
    if all(check.verdict == "pass" for check in checks):
        return "verified through the whole by finite differences (S1, S2)"
    return "NOT verified (" + "; ".join(f"{c.id} {c.verdict}: {c.detail}" for c in checks if c.verdict != "pass") + ")"


def _line(name: str, row: dict[str, Any], results: Results) -> str:
    outcome = results.outcomes[name]
    low, high = row["ci95"]
    system = f"{row['classifier']}" + (f" behind {results.subject.defence}" if row["purifier"] else ", undefended")
    retention = "-"
    if row["acc_robust"] is not None and row["acc_undefended_clean"]:
        retention = _percent(row["acc_robust"] / row["acc_undefended_clean"])
    robust = "withheld" if outcome.complete and not row["complete"] else _robust(outcome)
    return (
        f"| {system} | {row['threat']} | {row['attack']} | {_percent(row['acc_clean'])}"
        f" | {robust} | {100 * low:.1f} to {100 * high:.1f} | {retention} |"
    )


def _readings(results: Results) -> list[str]:
    rows = [row for row in results.rows if "readings" in row]
    if not rows:
        return []
    draws = rows[0]["readings"]["draws"]
    lines = ["## A stochastic defence, read three ways", "", READINGS.format(draws=draws), ""]
    lines += [f"| threat model | mean of a draw | majority of {draws} | any of {draws} |", "|---|---|---|---|"]
    for row in rows:
        counts = row["readings"]
        cells = [_percent(counts[name]) for name in ("mean_draw", "majority", "any_of_m")]
        lines.append(f"| {row['threat']} | {' | '.join(cells)} |")
    return [*lines, ""]


def _battery(results: Results) -> list[str]:
    if results.sanity is None:
        return []
    counts = results.sanity.to_json()["counts"]
    said = ", ".join(f"{count} {verdict}" for verdict, count in counts.items() if count)
    lines = ["## Sanity battery", "", f"On the first {results.sanity.samples} images: {said}. Passing is no proof.", ""]
    lines += ["| | check | verdict | finding |", "|---|---|---|---|"]
    for check in results.sanity.checks:
        verdict = f"**{check.verdict}**" if check.verdict in ("warn", "fail") else check.verdict
        lines.append(f"| {check.id} | {check.name} | {verdict} | {check.detail.replace('|', '/')} |")
    return [*lines, ""]


def _robust(outcome: Outcome) -> str:
    if outcome.accuracy is not None:
        return f"{_percent(outcome.accuracy)} ({outcome.count(Status.ROBUST)}/{outcome.n})"
    low, high = outcome.bounds
    return f"between {_percent(low)} and {_percent(high)}"


def _troubles(results: Results) -> list[str]:
    mismatch = class_mismatch(results.manifest.values["num_classes"], results.subject.class_names)
    lines = [f"- {mismatch}"] if mismatch else []
    for name, outcome in results.outcomes.items():
        for status in (Status.ERROR, Status.NOT_RUN):
            if count := outcome.count(status):
                lines.append(f"- {name}: {count} of {outcome.n} samples {status.name.lower().replace('_', ' ')}")
        lines += [f"- {name}: {text}" for text in (*outcome.errors, *outcome.warnings)]
    return lines


def _percent(fraction: float | None) -> str:
    return "?" if fraction is None else f"{100 * fraction:.2f} %"
