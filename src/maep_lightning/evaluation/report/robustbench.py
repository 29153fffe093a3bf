"""`robustbench.json`: whether a figure could stand on RobustBench, and its fields there."""

from typing import Any

from maep_lightning.evaluation.results import Results

BOARDS = {
    ("cifar10", "Linf", "8/255"): 10_000,
    ("cifar10", "L2", "0.5"): 10_000,
    ("cifar100", "Linf", "8/255"): 10_000,
    ("imagenet", "Linf", "4/255"): 5_000,
}
"""Data set, norm and radius of the leaderboards, and how many images they count (RobustBench's README)."""

IMAGE_LIST = "imagenet_test_image_ids.txt"
"""RobustBench's list of the images that its leaderboard of ImageNet counts; told by its name, as it is not shipped."""


def reasons_against(results: Results) -> list[str]:
    """Why RobustBench would not take the white-box figure; empty where nothing is known against it.

    Args:
        results: Of an evaluation.
    """
    values, title, dataset = results.manifest.values, results.subject.dataset, _dataset(results)
    against = []
    board = BOARDS.get((dataset, values["norm"], values["eps"]))
    if board is None:
        against.append(f"there is no leaderboard for {title} {values['norm']} {values['eps']}")
    else:
        if dataset == "imagenet" and (title != f"imagenet ({IMAGE_LIST})" or values["n"] > board):
            against.append(
                f"of ImageNet RobustBench takes the {board} images of its {IMAGE_LIST} (robustbench/helper_files in "
                f"its repository): give that file as image_list, test_limit {board} or none"
            )
        if values["n"] < board:
            against.append(f"{values['n']} of {board} images")
    if "whitebox" not in values["threats"]:
        against.append("the white-box rung was not climbed")
    elif results.plan.version != "standard" or results.plan.settings.reduced:
        against.append(f"the attack is {values['attack_title']}")
    if values["whole_draws"] > 1:
        against.append("the purifier is stochastic")
    if not results.complete:
        against.append("the run is incomplete or its headline withheld")
    if results.sanity is None:
        against.append("the sanity battery was left out")
    else:
        names = {"S1": "zero or non-finite gradients", "S8": "not deterministic"}
        against += [text for id_, text in names.items() if results.sanity.check(id_).verdict in ("warn", "fail")]
        if results.sanity.check("S2").verdict == "fail":
            against.append("gradients that are not those of the function")
    return against


def robustbench_fields(results: Results) -> dict[str, Any]:
    """The fields of a RobustBench entry that an evaluation knows, under its names; accuracies in per cent, as text.

    Args:
        results: Of an evaluation.
    """
    defended = any(row["purifier"] is not None for row in results.rows)
    prefix = "" if defended else "undefended-"
    clean = results.by_rung[f"{prefix}none"]["acc_clean"]
    attacked = results.by_rung.get(f"{prefix}whitebox", {}).get("acc_robust")
    against = reasons_against(results)
    return {
        "name": f"{results.subject.classifier} behind {results.subject.defence}"
        if defended
        else results.subject.classifier,
        "dataset": _dataset(results),
        "threat_model": results.manifest.values["norm"],
        "eps": results.manifest.values["eps"],
        "clean_acc": None if clean is None else f"{100 * clean:.2f}",
        "autoattack_acc": None if attacked is None or results.plan.settings.reduced else f"{100 * attacked:.2f}",
        "additional_data": results.subject.training_data,
        "unreliable": bool(results.sanity and results.sanity.failed),
        "admissible": not against,
        "reasons_against": against,
    }


def _dataset(results: Results) -> str:
    """RobustBench's name of a data set, which a title has a list of images behind."""
    title = results.subject.dataset
    return "imagenet" if title.startswith("imagenet (") else title
