"""What a cell's purifier is worth on images of the validation split: clean, under blind and under white-box attack."""

import json
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save
from torch import Tensor, nn

from maep_lightning.attacks.autoattack import AutoAttackSettings, run_component
from maep_lightning.attacks.simple import SIMPLE, simple_attack
from maep_lightning.attacks.target import Target
from maep_lightning.attacks.threat import Epsilon
from maep_lightning.data import ImageDataModule
from maep_lightning.evaluation import fingerprint
from maep_lightning.evaluation.files import write_atomically
from maep_lightning.evaluation.provenance import describe_run
from maep_lightning.evaluation.summary import wilson
from maep_lightning.models.classifiers import load_classifier
from maep_lightning.models.defended import DefendedClassifier, stages
from maep_lightning.models.registry import load_purifier
from maep_lightning.models.repeated import RepeatedPurifier

AT_TEST_TIME = ("mask_ratio", "masks", "aggregate", "passes")
BATCH = 100


class Judge:
    """Judges purifiers before one classifier; images attacked on the classifier alone are made once.

    Args:
        victim: The options of a task that name the frozen classifier.
        data: The options of the DataModule.
        runs: Where the images attacked on the classifier are kept.
    """

    def __init__(self, victim: dict[str, str], data: dict[str, Any], runs: Path) -> None:
        module = ImageDataModule(**data)
        self.name, self.dataset, self.runs = Path(victim["classifier"]).stem, module.spec.name, runs
        self.classifier = load_classifier(victim["classifier"], victim.get("classifier_name"), module.num_classes)
        images, self.labels = module.val_set()
        self.images = images.float() / 255
        self.bare = _right(self.classifier, self.images, self.labels)

    def write(self, file: Path, weights: Path, options: dict[str, Any], seed: int, trained: float) -> None:
        """Judge one purifier and write its results file, whole or not at all.

        Args:
            file: The results file.
            weights: The purifier.
            options: `n` images, radius `eps`, the simple attacks that are `blind`, `whitebox` (its `n` images, `steps`
                and `targets` of APGD; null for none), and the options of `RepeatedPurifier`.
            seed: Of the cell.
            trained: Seconds of one core that its training took.
        """
        started = time.process_time()
        purifier = load_purifier(weights)
        if repeats := {name: options[name] for name in AT_TEST_TIME if name in options}:
            purifier = RepeatedPurifier(purifier, **repeats)
        eps, n = Epsilon(options["eps"]), options["n"]
        labels, whitebox = self.labels[:n], options["whitebox"]
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            defended = DefendedClassifier(purifier, self.classifier)
            clean = _right(defended, self.images[:n], labels)
            blind = {name: _right(defended, self._attacked(name, eps)[:n], labels) for name in options["blind"]}
            robust = self._whitebox(purifier, clean, eps, seed, **whitebox) if whitebox else None
        described = {name: _describe(name) for name in blind}
        rows = [self._row("none", "none", Epsilon("0"), clean, clean)]
        rows += [self._row("blind", described[name], eps, right, clean) for name, right in blind.items()]
        if len(blind) > 1:
            worst = torch.stack(list(blind.values())).all(dim=0)
            rows.append(self._row("blind_worst", "worst of " + ", ".join(described.values()), eps, worst, clean))
        if robust is not None:
            rows.append(self._row("whitebox", _describe_whitebox(**whitebox), eps, robust, clean[: len(robust)]))
        run = describe_run(seed, time.process_time() - started) | {"training_core_seconds": round(trained, 1)}
        content = {"schema": 1, "run": run, "rows": rows}
        write_atomically(file, (json.dumps(content, indent=2) + "\n").encode())

    def _attacked(self, name: str, eps: Epsilon) -> Tensor:
        """All images, attacked on the classifier alone."""
        made_by = {
            "attack": name,
            "recipe": asdict(SIMPLE[name]),
            "eps": str(eps),
            "weights": fingerprint.of_weights(self.classifier),
            "architecture": fingerprint.of_architecture(self.classifier),
            "data": fingerprint.of_tensors({"images": self.images, "labels": self.labels}),
            "packages": fingerprint.of_packages() | fingerprint.of_libraries(self.classifier),
        }
        file = self.runs / f"blind/{name}-{fingerprint.of_json(made_by)[:12]}.safetensors"
        if not file.exists():
            generator = torch.Generator().manual_seed(0)
            batches = zip(self.images.split(BATCH), self.labels.split(BATCH), strict=True)
            images = [simple_attack(self.classifier, x, y, name, eps, generator=generator) for x, y in batches]
            write_atomically(file, save({"images": torch.cat(images)}))
        return load_file(file)["images"]

    def _whitebox(
        self, purifier: nn.Module, clean: Tensor, eps: Epsilon, seed: int, n: int, steps: int, targets: int
    ) -> Tensor:
        """`(n,)` bool: right on the image, and on what BIM and APGD find through purifier and classifier.

        The cheap attack goes first, each next one works on what is still right.
        """
        target = Target(*stages(purifier, self.classifier))
        settings = AutoAttackSettings(eps, apgd_steps=steps, targets=targets)
        images, labels, robust = self.images[:n], self.labels[:n], clean[:n].clone()
        with target.guarded():
            for attack in ("bim", "apgd-ce", "apgd-t"):
                for rows in filter(len, robust.nonzero().flatten().split(BATCH)):
                    if attack in SIMPLE:
                        attacked = simple_attack(target, images[rows], labels[rows], attack, eps)
                    else:
                        attacked, _ = run_component(target, images[rows], labels[rows], attack, settings, seed)
                    with torch.no_grad():
                        robust[rows] = target(attacked).argmax(1) == labels[rows]
        return robust

    def _row(self, threat: str, attack: str, eps: Epsilon, right: Tensor, clean: Tensor) -> dict[str, Any]:
        n, count = len(right), int(right.sum())
        low, high = wilson(count, n)
        return {
            "dataset": self.dataset, "split": "validation", "n": n, "classifier": self.name, "purifier": "MAEP",
            "policy": "native", "threat": threat, "attack": attack, "norm": "Linf", "eps": str(eps),
            "acc_undefended_clean": int(self.bare[:n].sum()) / n, "acc_clean": int(clean.sum()) / n,
            "acc_robust": count / n, "ci95": [round(low, 6), round(high, 6)], "complete": True,
        }  # fmt: skip


def _describe(name: str) -> str:
    steps = SIMPLE[name].steps
    return name.upper() if steps == 1 else f"{name.upper()}-{steps}"


def _describe_whitebox(n: int, steps: int, targets: int) -> str:
    return f"worst of {_describe('bim')}, APGD-CE and APGD-T ({steps} steps, {targets} targets)"


@torch.no_grad()
def _right(network: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
    """`(B,)` bool: which images are classified right."""
    pairs = zip(images.split(BATCH), labels.split(BATCH), strict=True)
    return torch.cat([network(x).argmax(1) == y for x, y in pairs])
