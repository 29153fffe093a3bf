"""What is going to be measured, fixed before the first attack."""

import json
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from maep_lightning.attacks.autoattack import PUBLISHED_EOT, AutoAttackSettings, Version
from maep_lightning.attacks.pgd import EOT_STEPS
from maep_lightning.attacks.threat import Epsilon, Norm
from maep_lightning.evaluation import fingerprint
from maep_lightning.evaluation.files import write_atomically
from maep_lightning.evaluation.threats import TITLES, NamedThreat, parse_threat

SCHEMA = 2


class PlanChangedError(ValueError):
    """A run folder holds results of something else than what is asked for now."""


@dataclass(frozen=True)
class Plan:
    """An evaluation, as a user asks for it.

    Args:
        eps: Radius on the [0, 1] pixel scale, written `8/255`.
        norm: `Linf`, `L2` or `L1`.
        threats: Which threat models: `none` (clean); `noise` (random corners of the ball); `transfer` (the attacker
            has a surrogate classifier only); `blind` (the attacker knows the classifier, not the purifier, and runs
            AutoAttack); `blind_worst` (the same, and per sample the worst of FGSM, BIM, MI-FGSM and PGD);
            `square` (the attacker sees logits); `bpda` (the attacker takes the purifier's gradient for the identity);
            `whitebox` (the attacker differentiates through both); for stochastic purifiers `eot` (the same, averaging
            gradients over draws) and `fixed_coins` (the attacker knows the draws, which are fixed). `blind:fgsm`,
            `whitebox:apgd-ce+apgd-t` and the like name the attacks in place of AutoAttack, for each image the worst of
            them: `fgsm`, `bim`, `mi-fgsm`, `di-mi-fgsm`, `pgd` (five starts), or a component of AutoAttack.
        n: The first so many samples; None for all.
        chunk_size: Samples attacked together. Part of the result: random starts are drawn by the row in the chunk.
        seed: Of all random draws.
        version: AutoAttack's, `standard` or `rand`.
        apgd_steps: Iterations of APGD; below the published 100 the result is named reduced.
        fab_steps: Iterations of FAB; published 100.
        square_queries: Queries of Square; published 5000.
        targets: At most so many target classes; None as published.
        eot_draws: Draws over which a gradient is averaged in `eot`, `bpda` and version `rand`; published 20.
        eot_steps: Steps of PGD in `eot`; published 200.
        judge_draws: Draws whose majority is the verdict on an image, where the system is stochastic.

    Raises:
        ValueError: If a value is out of range, or a threat unknown.
    """

    eps: Epsilon
    norm: Norm = "Linf"
    threats: tuple[str, ...] = ("none", "blind", "whitebox")
    n: int | None = None
    chunk_size: int = 64
    seed: int = 0
    version: Version = "standard"
    apgd_steps: int = 100
    fab_steps: int = 100
    square_queries: int = 5000
    targets: int | None = None
    eot_draws: int = PUBLISHED_EOT
    eot_steps: int = EOT_STEPS
    judge_draws: int = 64

    def __post_init__(self) -> None:
        object.__setattr__(self, "eps", Epsilon(self.eps))
        object.__setattr__(self, "threats", tuple(self.threats))
        if not self.threats:
            raise ValueError("There is no threat model to measure: give some in threats, such as none or whitebox.")
        simple = [
            text
            for text, (kind, attacks) in self.named.items()
            if kind in ("transfer", "blind_worst") or set(attacks) & set(TITLES)
        ]
        if self.norm == "L1" and simple:
            raise ValueError(f"{' and '.join(simple)} are measured in Linf and L2 only; leave them out for L1.")
        for name in ("n", "chunk_size", "eot_steps", "judge_draws"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} must be at least 1, not {value}.")
        _ = self.settings

    @property
    def named(self) -> dict[str, NamedThreat]:
        """What each of `threats` means."""
        return {text: parse_threat(text) for text in self.threats}

    @property
    def kinds(self) -> set[str]:
        """The threat models, whatever attacks stand for them."""
        return {threat.kind for threat in self.named.values()}

    @property
    def settings(self) -> AutoAttackSettings:
        """The part that AutoAttack needs."""
        names = [field.name for field in fields(AutoAttackSettings)]
        return AutoAttackSettings(**{name: getattr(self, name) for name in names})


@dataclass(frozen=True)
class Manifest:
    """A plan bound to networks and data: everything that a result depends on, as JSON types.

    Attributes:
        values: Field names to values; nothing in it depends on the number of processes.
        hash: SHA-256 of `values`.
    """

    values: dict[str, Any]
    hash: str = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "hash", fingerprint.of_json(self.values))

    @classmethod
    def bind(
        cls,
        plan: Plan,
        classifier: nn.Module,
        purifier: nn.Module | None,
        images: Tensor,
        labels: Tensor,
        num_classes: int,
        device: str,
        surrogate: nn.Module | None = None,
        stochastic: tuple[str, ...] = (),
    ) -> "Manifest":
        """Fix a plan to what it is about.

        Args:
            plan: The plan.
            classifier: The frozen classifier.
            purifier: The purifier, or None.
            images: The images that are evaluated, `(N, C, H, W)`.
            labels: `(N,)`.
            num_classes: K.
            device: Kind of device (`cpu`, `cuda`), since floating point differs between them.
            surrogate: The classifier that the transfer rung attacks, if that is asked for.
            stochastic: Which are, of `classifier` and `whole`.
        """
        values = asdict(plan) | {
            "schema": SCHEMA,
            "eps": str(plan.eps),
            "n": len(labels),
            "threats": list(plan.threats),
            "attacks": list(plan.settings.components(num_classes)),
            "attack_title": plan.settings.title(num_classes),
            "num_classes": num_classes,
            "precision": "float32",
            "device": device,
            "classifier_draws": plan.judge_draws if "classifier" in stochastic else 1,
            "whole_draws": plan.judge_draws if "whole" in stochastic else 1,
            "classifier_weights": fingerprint.of_weights(classifier),
            "classifier_architecture": fingerprint.of_architecture(classifier),
            "purifier_weights": fingerprint.of_weights(purifier),
            "purifier_architecture": fingerprint.of_architecture(purifier),
            "images": fingerprint.of_tensors({"images": images}),
            "labels": fingerprint.of_tensors({"labels": labels}),
        }
        if "whole" in stochastic and isinstance(chunk := getattr(purifier, "chunk", None), int):
            values["purifier_chunk"] = chunk  # of a resolution policy, which draws chunk by chunk
        if surrogate is not None:
            values["surrogate_weights"] = fingerprint.of_weights(surrogate)
            values["surrogate_architecture"] = fingerprint.of_architecture(surrogate)
        for name, network in (("classifier", classifier), ("purifier", purifier), ("surrogate", surrogate)):
            if libraries := fingerprint.of_libraries(network):
                values[f"{name}_libraries"] = libraries
        values |= {f"version_{name}": number for name, number in fingerprint.of_packages().items()}
        return cls(values)

    def pin(self, run_dir: Path) -> None:
        """Write the manifest into a new run folder, or check that the folder's is the same.

        Further threats may be measured where others were, and in another order: what is on file of those does not
        depend on them.

        Args:
            run_dir: The folder; made when missing.

        Raises:
            PlanChangedError: If the folder was started with something else; the message names each field.
        """
        path = run_dir / "plan.json"
        text = json.dumps({"hash": self.hash, "values": self.values}, indent=2, sort_keys=True) + "\n"
        if not path.exists():
            write_atomically(path, text.encode())
        if self.check(run_dir):
            write_atomically(path, text.encode())

    def check(self, run_dir: Path) -> bool:
        """Whether it asks for further threats than those that a run folder was started with, or in another order.

        Args:
            run_dir: The folder.

        Raises:
            FileNotFoundError: If there is no evaluation in the folder.
            PlanChangedError: If the folder was started with something else; the message names each field.
        """
        before = self.read(run_dir)
        was, is_ = before.values.get("threats", []), self.values["threats"]
        if set(was) <= set(is_) and was != is_ and before.values | {"threats": is_} == self.values:
            return True
        names = sorted(before.values.keys() | self.values.keys())
        changes = [
            f"{name}: was {_short(before.values.get(name))}, is {_short(self.values.get(name))}"
            for name in names
            if before.values.get(name) != self.values.get(name)
        ]
        if changes:
            raise PlanChangedError(
                f"{run_dir} holds an evaluation of something else ({'; '.join(changes)})."
                " Restore that, or give another run_dir."
            )
        return False

    @classmethod
    def read(cls, run_dir: Path) -> "Manifest":
        """The manifest of a run folder.

        Args:
            run_dir: The folder.

        Raises:
            FileNotFoundError: If there is no evaluation in the folder.
            PlanChangedError: If the file was edited or is no manifest.
        """
        path = run_dir / "plan.json"
        if not path.exists():
            raise FileNotFoundError(f"{run_dir} holds no evaluation: plan.json is missing.")
        try:
            stored = json.loads(path.read_text())
            manifest = cls(dict(stored["values"]))
        except (ValueError, KeyError, TypeError) as error:
            raise PlanChangedError(f"{path} is damaged ({error}); give another run_dir.") from None
        if manifest.hash != stored.get("hash"):
            raise PlanChangedError(f"{path} was edited: its values do not have the hash it states.")
        return manifest


def _short(value: Any) -> str:
    return f"{value[:12]}…" if isinstance(value, str) and len(value) == 64 else repr(value)
