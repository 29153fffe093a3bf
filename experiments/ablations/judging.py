"""What a cell's purifier is worth: accuracies on validation images, to choose by, and on test images, to report."""

import json
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from maep_lightning.attacks.simple import SIMPLE, simple_attack
from maep_lightning.attacks.threat import Epsilon
from maep_lightning.data import ImageDataModule
from maep_lightning.evaluation.engine import evaluate
from maep_lightning.evaluation.plan import Plan
from maep_lightning.evaluation.provenance import describe_run
from maep_lightning.evaluation.results import Subject
from maep_lightning.evaluation.summary import wilson
from maep_lightning.models.classifiers import load_classifier
from maep_lightning.models.defended import DefendedClassifier
from maep_lightning.tasks import PurifierEvaluation

AT_TEST_TIME = ("mask_ratio", "masks", "aggregate", "passes")


class Judge:
    """Judges purifiers before one classifier; attacks that depend on the classifier alone are made once.

    Args:
        victim: The options of a task that name the frozen classifier.
        data: The options of the DataModule.
        runs: Where AutoAttack's images on the bare classifier are kept.
    """

    def __init__(self, victim: dict[str, str], data: dict[str, Any], runs: Path) -> None:
        self.data, self.runs = ImageDataModule(**data), runs
        self.victim = {**victim, "num_classes": self.data.num_classes}
        self.classifier = load_classifier(victim["classifier"], victim.get("classifier_name"), self.data.num_classes)
        self._attacked: dict[tuple[str, str, int, str], Tensor] = {}

    def write(self, file: Path, purifier: Path, options: dict[str, Any], trained: float) -> None:
        """Judge one purifier and write its results file.

        Args:
            file: The results file; ledger and report of AutoAttack go beside it.
            purifier: Its weights.
            options: The fields of `Plan`, the test-time options of a purifier, `attacks` (names of blind simple
                attacks on test images) and `val_n` (validation images).
            trained: Seconds of one core that its training took.
        """
        started = time.process_time()
        options = dict(options)
        at_test_time = {name: options.pop(name) for name in AT_TEST_TIME if name in options}
        attacks, val_n = options.pop("attacks", []), options.pop("val_n")
        plan = Plan(**options)
        task = PurifierEvaluation(purifier=str(purifier), **self.victim, **at_test_time).eval()
        subject = Subject(self.data.spec.name, "test", Path(self.victim["classifier"]).stem, purifier.parent.name)
        torch.manual_seed(plan.seed)
        rows = self._simple(task, "validation", ["none", "pgd"], val_n, plan.eps, subject)
        rows += self._simple(task, "test", attacks, plan.n, plan.eps, subject)
        images, labels = self.data.test_set()
        results = evaluate(
            task.classifier, task.purifier, images, labels, plan, file.parent / "autoattack",
            subject=subject, cache_dir=self.runs / "attacks", sanity=0, progress=False,
        )  # fmt: skip
        run = describe_run(plan.seed, time.process_time() - started) | {"core_seconds": round(trained, 1)}
        content = {"schema": 1, "run": run, "rows": [*rows, *results.rows]}
        partial = file.with_suffix(".partial")
        partial.write_text(json.dumps(content, indent=2) + "\n")
        partial.replace(file)

    def _simple(
        self, task: PurifierEvaluation, split: str, attacks: list[str], n: int | None, eps: Epsilon, subject: Subject
    ) -> list[dict[str, Any]]:
        """Rows of blind simple attacks, each on its own, and of clean images (`none`)."""
        images, labels = self.data.val_set() if split == "validation" else self.data.test_set()
        images, labels = images[:n].float() / 255, labels[:n]
        defended = DefendedClassifier(task.purifier, task.classifier)
        clean, undefended = _accuracy(defended, images, labels), _accuracy(self.classifier, images, labels)
        rows = []
        for name in attacks:
            started = time.process_time()
            accuracy = clean
            if name != "none":
                accuracy = _accuracy(defended, self._attack(split, name, images, labels, eps), labels)
            low, high = wilson(round(accuracy * len(labels)), len(labels))
            rows.append({
                "dataset": subject.dataset, "split": split, "n": len(labels), "classifier": subject.classifier,
                "purifier": subject.purifier, "policy": "native", "threat": "none" if name == "none" else "blind",
                "attack": name if name == "none" else f"{name.upper()}, {SIMPLE[name].steps} steps", "norm": "Linf",
                "eps": "0" if name == "none" else str(eps), "acc_undefended_clean": undefended,
                "acc_clean": clean, "acc_robust": accuracy, "ci95": [round(low, 6), round(high, 6)],
                "complete": True, "seconds": round(time.process_time() - started, 1),
            })  # fmt: skip
        return rows

    def _attack(self, split: str, name: str, images: Tensor, labels: Tensor, eps: Epsilon) -> Tensor:
        key = (split, name, len(labels), str(eps))
        if key not in self._attacked:
            generator = torch.Generator().manual_seed(0)
            self._attacked[key] = simple_attack(self.classifier, images, labels, name, eps, generator=generator)
        return self._attacked[key]


@torch.no_grad()
def _accuracy(network: torch.nn.Module, images: Tensor, labels: Tensor) -> float:
    right = [network(x).argmax(1) == y for x, y in zip(images.split(250), labels.split(250), strict=True)]
    return torch.cat(right).double().mean().item()
