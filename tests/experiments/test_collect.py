"""One table from the attack runs of a study."""

import json
import sys

from experiments import collect


def row(threat, attack, accuracy, **changes):
    known = accuracy is not None
    return {
        "n": 100, "classifier": "c", "purifier": "p", "policy": "native", "threat": threat, "attack": attack,
        "norm": "Linf", "eps": "8/255", "acc_clean": 0.9, "acc_robust": accuracy, "complete": known,
        "ci95": [accuracy - 0.1, accuracy + 0.1] if known else [0.05, 0.6],
    } | changes  # fmt: skip


def collected(tmp_path, **stages):
    run = {"seed": 0, "hardware": "a machine", "commit": "0123456", "dirty": False, "command": "make"}
    for stage, rows in stages.items():
        file = tmp_path / "p" / stage / "results.json"
        file.parent.mkdir(parents=True)
        file.write_text(json.dumps({"schema": 1, "run": run, "rows": rows}))
    return [(row["threat"], row["attack"], row["acc_robust"]) for row in collect.rows_of(tmp_path)[0]]


def test_rows_of__the_same_in_two_runs_is_there_once_and_nothing_else_is_left_out(tmp_path):
    blind = row("blind", "AutoAttack standard", 0.7)
    others = [
        row("blind", "FGSM", 0.6), row("blind", "AutoAttack standard", 0.5, eps="16/255"),
        row("blind", "AutoAttack standard", 0.4, norm="L2"), row("blind", "AutoAttack standard", 0.3, policy="tile"),
    ]  # fmt: skip
    found = collected(tmp_path, blind=[blind], attack=[blind, *others])
    assert [accuracy for _, _, accuracy in found] == [0.7, 0.6, 0.5, 0.4, 0.3]


def test_rows_of__of_several_worst_the_lowest_stays_behind_what_it_is_the_worst_of(tmp_path):
    white, square = row("whitebox", "AutoAttack standard", 0.4), row("square", "square (5000 queries)", 0.3)
    both, all_ = row("worst", "AutoAttack standard", 0.4), row("worst", "worst of whitebox, square", 0.3)
    found = collected(tmp_path, attack=[white, both], ladder=[white, square, all_])
    assert found == [(r["threat"], r["attack"], r["acc_robust"]) for r in (white, square, all_)]


def test_rows_of__a_higher_worst_of_a_later_run_does_not_take_the_place_of_a_lower(tmp_path):
    first, later = row("worst", "AutoAttack standard", 0.3), row("worst", "worst of blind, noise", 0.4)
    assert collected(tmp_path, attack=[first], ladder=[later])[0][2] == 0.3


def test_rows_of__of_equal_worst_that_of_the_ladder_stays_and_an_open_one_that_may_be_lower(tmp_path):
    both, all_ = row("worst", "AutoAttack standard", 0.3), row("worst", "worst of whitebox, square", 0.3)
    assert collected(tmp_path / "a", attack=[both], ladder=[all_]) == [("worst", "worst of whitebox, square", 0.3)]
    open_ = row("worst", "worst of whitebox, square", None)
    assert collected(tmp_path / "b", attack=[both], ladder=[open_])[0][2] is None


def test_main__writes_a_table_of_all_rows(tmp_path, monkeypatch):
    collected(tmp_path, blind=[row("blind", "AutoAttack standard", 0.7), row("blind", "FGSM", 0.6)])
    monkeypatch.setattr(sys, "argv", ["collect.py", str(tmp_path)])
    collect.main()
    assert len(json.loads((tmp_path / "results.json").read_text())["rows"]) == 2
    assert "| FGSM | 100 |" in (tmp_path / "report.md").read_text()
