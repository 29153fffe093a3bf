"""`verify`: check a finished evaluation anew, from its files."""

import argparse
import sys
from dataclasses import fields, replace
from pathlib import Path

from maep_lightning.cli.errors import fail


def run(args: list[str]) -> None:
    """Judge every stored adversarial image of a run again, and follow its ledger.

    Args:
        args: The run folder and options.

    Raises:
        SystemExit: With code 1 where anything is not as it must be, each named on stderr; with 2 after a mistake of
            the user.
    """
    options = _parser().parse_args(args)
    run_dir = Path(options.run)
    if not (run_dir / "plan.json").exists() and (run_dir / "autoattack" / "plan.json").exists():
        run_dir = run_dir / "autoattack"
    if not (run_dir / "plan.json").exists():
        fail(f"{run_dir} holds no evaluation: plan.json is missing", "give the folder that holds report.md")

    import torch

    from maep_lightning.data import ImageSource
    from maep_lightning.evaluation.sources import Sources
    from maep_lightning.evaluation.verify import recheck
    from maep_lightning.models.classifiers import load_classifier
    from maep_lightning.models.policies import apply_policy
    from maep_lightning.models.registry import load_purifier
    from maep_lightning.models.repeated import RepeatedPurifier

    try:
        sources = Sources.read(run_dir)
        names = [item.name for item in fields(Sources) if hasattr(options, item.name)]
        sources = replace(sources, **{name: value for name in names if (value := getattr(options, name)) is not None})
        for name in ("classifier", "dataset"):
            if getattr(sources, name) is None:
                fail(f"the run does not say where its {name} came from", f"give --{name}")
        device = torch.device(options.device)
        classifier = load_classifier(str(sources.classifier), sources.classifier_name, sources.num_classes)
        purifier = None
        if sources.purifier is not None:
            purifier = load_purifier(sources.purifier)
            if sources.repeats:
                purifier = RepeatedPurifier(purifier, **sources.repeats)
            purifier = apply_policy(purifier, sources.policy, sources.chunk)
        surrogate = None
        if sources.surrogate is not None:
            surrogate = load_classifier(sources.surrogate, sources.surrogate_name, sources.num_classes).to(device)
        choices = dict(sources.images)
        limit = choices.pop("test_limit", None)
        images, labels = ImageSource(str(sources.dataset), sources.root, **choices).test_images(limit)
        found = recheck(
            run_dir,
            classifier.to(device),
            None if purifier is None else purifier.to(device),
            images,
            labels,
            surrogate=surrogate,
            batch_size=options.batch_size,
        )
    except (OSError, ValueError) as error:
        fail(str(error))
    print(
        f"{run_dir}: {found.files} files, {found.clean} clean and {found.images} adversarial images judged anew,"
        f" {found.near_ties} of them near a tie"
    )
    for note in found.notes:
        print(f"note: {note}")
    if found.faults:
        for fault in found.faults[: options.most]:
            print(f"fault: {fault}", file=sys.stderr)
        if len(found.faults) > options.most:
            print(f"... and {len(found.faults) - options.most} more", file=sys.stderr)
        print(f"FAILED: {len(found.faults)} faults", file=sys.stderr)
        raise SystemExit(1)
    print("verified: every stored adversarial image is finite, in [0, 1], within eps and misclassified")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        "verify",
        description="Judge every stored adversarial image of an evaluation again and follow its ledger from file to"
        " file. Networks and data are those that the run recorded, unless given here.",
        allow_abbrev=False,
    )
    parser.add_argument("run", metavar="RUN", help="folder of the evaluation, with plan.json and ledger/")
    parser.add_argument("--classifier", help="file of the classifier")
    parser.add_argument("--purifier", help="file of the purifier, or its text such as jpeg:75")
    parser.add_argument("--policy", help="resolution policy of the purifier, such as tile")
    parser.add_argument("--surrogate", help="file of the surrogate classifier of the transfer rung")
    parser.add_argument("--classifier_name", help="what network the classifier's file holds, if it does not say it")
    parser.add_argument("--surrogate_name", help="what network the surrogate's file holds, likewise")
    parser.add_argument("--num_classes", type=int, help="number of classes, needed with such a name")
    parser.add_argument("--dataset", help="data set whose test split was attacked: its name, or python:MODULE:NAME")
    parser.add_argument("--root", help="folder that holds data sets; else $MAEP_DATA_DIR, else data")
    parser.add_argument("--batch_size", type=int, default=50, help="images judged together (50)")
    parser.add_argument("--device", default="cpu", help="where to compute (cpu)")
    parser.add_argument("--most", type=int, default=20, help="at most so many faults are printed (20)")
    return parser
