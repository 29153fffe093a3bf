"""AutoAttack in `lightning test`: on the bare classifier (blind) and end to end through the purifier (white-box)."""

from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import TensorBoardLogger
from torch import nn

from maep_lightning.attacks.autoattack import PUBLISHED_EOT, PUBLISHED_QUERIES, PUBLISHED_STEPS, Version
from maep_lightning.attacks.pgd import EOT_STEPS
from maep_lightning.attacks.threat import Epsilon, Norm
from maep_lightning.data import SHIPPED, known_names
from maep_lightning.data.source import CHOICES, ImageSource
from maep_lightning.evaluation.engine import evaluate
from maep_lightning.evaluation.plan import Plan
from maep_lightning.evaluation.results import Results, Subject
from maep_lightning.evaluation.sanity.findings import SCORES
from maep_lightning.evaluation.sources import Sources
from maep_lightning.models.classifiers import load_classifier
from maep_lightning.models.policies import CHUNK
from maep_lightning.models.trained import trained_on


class AutoAttackCallback(Callback):
    """Evaluates the task's `classifier` and `purifier` after a test epoch, and writes a report.

    Every sample is attacked exactly once, whatever the number of processes; a run that was killed goes on where it was.
    Images come from the DataModule's `test_set()`, not from the batches, which Lightning may repeat to even them out.
    Attacks run in float32 whatever the trainer's precision. Logged are, as fractions of integer counts,

    - `clean/undefended/acc` and `clean/purified/acc`;
    - `robust/<threat>/<norm>_<eps>/acc` with `ci_low` and `ci_high` (Wilson, 95 %), for the threats asked for,
      `worst` (per-sample) and `undefended_whitebox` (the bare classifier);
    - of a stochastic purifier beside `acc`, which is by majority, `mean_draw` and `any_of_m`;
    - for a threat with errors, in place of `acc`, `bound_low` and `bound_high`: what it were if every sample with an
      error were wrong, and if it were right; the interval is around both. Of a withheld headline the interval alone;
    - in TensorBoard `sanity/<check>`: 1 for a pass, 0.5 for a warning, 0 for a fail of the sanity battery.

    Args:
        eps: Radius on the [0, 1] pixel scale, such as 8/255.
        norm: `Linf`, `L2` or `L1`.
        threats: Some of `none`, `noise`, `transfer`, `blind`, `blind_worst`, `square`, `bpda` and `whitebox`, and for
            stochastic purifiers `eot` and `fixed_coins`; `blind:fgsm` and the like name the attacks. See
            `maep_lightning.evaluation.plan.Plan`.
        n: The first so many test images; all if None.
        chunk_size: Samples attacked together; part of the result.
        seed: Of all random draws.
        version: AutoAttack's: `standard`, or `rand` for stochastic models.
        apgd_steps: Iterations of APGD; below 100 the result is not called AutoAttack.
        fab_steps: Iterations of FAB; below 100 likewise.
        square_queries: Queries of Square; below 5000 likewise.
        targets: At most so many target classes; as published if None.
        eot_draws: Draws of a stochastic purifier over which a gradient is averaged; published 20.
        eot_steps: Steps of PGD in the threat `eot`; published 200.
        judge_draws: Draws whose majority is the verdict on an image, where the purifier is stochastic.
        run_dir: Folder of ledger and report; `autoattack` in the trainer's `default_root_dir` if None.
        cache_dir: Folder that keeps attacks on the bare classifier, so that the next purifier is judged blind at once.
        reference: JSON file of published rows to print beside the results.
        classifier_name: How the report calls the classifier; its file if None.
        purifier_name: How the report calls the purifier; its file, and the options of `RepeatedPurifier`, if None.
        training_data: What both were trained on, for the report; what the purifier's file says of it if None.
        surrogate: File of the classifier that the transfer threat attacks; needed for that one only.
        surrogate_name: What network the surrogate's file holds, if it does not say it itself.
        sanity: The first so many images go through the sanity battery; 0 leaves it out.
        strict: Whether a failed check of the battery withholds the headline.

    Raises:
        ValueError: If a value is out of range.
    """

    def __init__(
        self,
        eps: Epsilon = Epsilon("8/255"),
        norm: Norm = "Linf",
        threats: list[str] | None = None,
        n: int | None = None,
        chunk_size: int = 64,
        seed: int = 0,
        version: Version = "standard",
        apgd_steps: int = PUBLISHED_STEPS,
        fab_steps: int = PUBLISHED_STEPS,
        square_queries: int = PUBLISHED_QUERIES,
        targets: int | None = None,
        eot_draws: int = PUBLISHED_EOT,
        eot_steps: int = EOT_STEPS,
        judge_draws: int = 64,
        run_dir: str | None = None,
        cache_dir: str | None = None,
        reference: str | None = None,
        classifier_name: str | None = None,
        purifier_name: str | None = None,
        training_data: str | None = None,
        surrogate: str | None = None,
        surrogate_name: str | None = None,
        sanity: int = 64,
        strict: bool = False,
    ) -> None:
        self.plan = Plan(
            eps=eps,
            norm=norm,
            threats=("none", "blind", "whitebox") if threats is None else tuple(threats),
            n=n,
            chunk_size=chunk_size,
            seed=seed,
            version=version,
            apgd_steps=apgd_steps,
            fab_steps=fab_steps,
            square_queries=square_queries,
            targets=targets,
            eot_draws=eot_draws,
            eot_steps=eot_steps,
            judge_draws=judge_draws,
        )
        self.run_dir = run_dir
        self.cache_dir = cache_dir
        self.reference = reference
        self.classifier_name = classifier_name
        self.purifier_name = purifier_name
        self.training_data = training_data
        self.surrogate = surrogate
        self.surrogate_name = surrogate_name
        self.sanity = sanity
        self.strict = strict
        if ("transfer" in self.plan.threats) != (surrogate is not None):
            raise ValueError("The transfer threat and the file of a surrogate go together: give both, or neither.")
        if reference is not None and not Path(reference).is_file():
            raise FileNotFoundError(
                f"There is no file of published rows {Path(reference).absolute()}: give another reference, or null."
            )
        self.results: Results | None = None

    def on_test_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Attack, report and log.

        Args:
            trainer: Its DataModule must have `test_set()`.
            pl_module: A task with the networks `classifier` and `purifier`, which may be None.

        Raises:
            TypeError: If the task or the DataModule has not what is needed.
        """
        classifier, purifier = getattr(pl_module, "classifier", None), getattr(pl_module, "purifier", None)
        if not isinstance(classifier, nn.Module):
            raise TypeError(f"{type(pl_module).__name__} has no classifier to attack; test a PurifierEvaluation.")
        data: Any = getattr(trainer, "datamodule", None)
        if not hasattr(data, "test_set"):
            raise TypeError("AutoAttackCallback needs a DataModule with test_set(), such as ImageDataModule.")
        run_dir = Path(self.run_dir or Path(trainer.default_root_dir) / "autoattack")
        with torch.inference_mode(False):
            images, labels = data.test_set()
            self.results = evaluate(
                classifier,
                purifier,
                images,
                labels,
                self.plan,
                run_dir,
                subject=self._subject(pl_module, data, purifier),
                sources=self._sources(pl_module, data, purifier),
                cache_dir=self.cache_dir,
                reference=self.reference,
                progress=trainer.is_global_zero,
                surrogate=self._load_surrogate(data, pl_module.device),
                sanity=self.sanity,
                strict=self.strict,
            )
        for name, value in metrics(self.results).items():
            # Every process holds the same counts; the maximum of equal numbers is exact where their mean is not.
            pl_module.log(name, value, on_epoch=True, on_step=False, sync_dist=True, reduce_fx="max", batch_size=1)
        for logger in trainer.loggers:
            if isinstance(logger, TensorBoardLogger) and trainer.is_global_zero:
                _show(logger, run_dir, self.results)

    def _load_surrogate(self, data: Any, device: torch.device) -> nn.Module | None:
        if self.surrogate is None:
            return None
        classes = getattr(data, "num_classes", None)
        return load_classifier(self.surrogate, self.surrogate_name, classes).to(device)

    def _sources(self, pl_module: LightningModule, data: Any, purifier: nn.Module | None) -> Sources:
        files, options = dict(pl_module.hparams), dict(getattr(data, "hparams", {}))
        return Sources(
            classifier=files.get("classifier"),
            purifier=None if purifier is None else files.get("purifier"),
            surrogate=self.surrogate,
            surrogate_name=self.surrogate_name,
            classifier_name=files.get("classifier_name"),
            num_classes=files.get("num_classes") or getattr(data, "num_classes", None),
            dataset=_importable(data, options.get("dataset")),
            root=options.get("root"),
            repeats=getattr(pl_module, "repeats", None) or None,
            images={name: options[name] for name in CHOICES if options.get(name) is not None},
            policy=files.get("policy", "native"),
            chunk=files.get("chunk", CHUNK),
        )

    def _subject(self, pl_module: LightningModule, data: Any, purifier: nn.Module | None) -> Subject:
        files, options = dict(pl_module.hparams), dict(getattr(data, "hparams", {}))
        names, source = getattr(data, "class_names", None), getattr(data, "source", None)
        repeats = ", ".join(f"{name}={value}" for name, value in getattr(pl_module, "repeats", {}).items())
        purifier_name = str(files.get("purifier") or "purifier") + (f" ({repeats})" if repeats else "")
        return Subject(
            dataset=source.title
            if isinstance(source, ImageSource)
            else str(options.get("dataset", type(data).__name__)),
            split="test",
            classifier=self.classifier_name or str(files.get("classifier") or "classifier"),
            purifier=self.purifier_name or purifier_name,
            policy=str(getattr(purifier, "policy", "native")),
            class_names=None if names is None else tuple(str(name) for name in names),
            training_data=trained_on(purifier) if self.training_data is None else self.training_data,
        )


def metrics(results: Results) -> dict[str, float]:
    """What is logged of results: names with the threat model in them, and fractions.

    Args:
        results: Of an evaluation.
    """
    plan = results.plan
    logged: dict[str, float] = {}
    where = f"{plan.norm}_{str(plan.eps).replace('/', '-')}"
    for rung, row in results.by_rung.items():
        if row["threat"] == "none":
            name = f"clean/{'undefended' if row['purifier'] is None else 'purified'}"
        else:
            name = f"robust/{rung.replace('undefended-', 'undefended_').replace(':', '-')}/{where}"
        low, high = row["ci95"]
        logged |= {f"{name}/ci_low": low, f"{name}/ci_high": high}
        if row["complete"]:
            logged[f"{name}/acc"] = row["acc_robust"]
            logged |= {f"{name}/{key}": row["readings"][key] for key in ("mean_draw", "any_of_m") if "readings" in row}
        elif not results.outcomes[rung].complete:
            low, high = results.outcomes[rung].bounds
            logged |= {f"{name}/bound_low": low, f"{name}/bound_high": high}
    return logged


def _importable(data: Any, dataset: str | None) -> str | None:
    """A data set by a name that another process finds, where a DataModule of one's own registered it by its import."""
    module = type(data).__module__
    if dataset in set(known_names()) - SHIPPED and module.partition(".")[0] not in ("maep_lightning", "__main__"):
        return f"python:{module}:{dataset}"
    return dataset


def _show(logger: TensorBoardLogger, run_dir: Path, results: Results) -> None:
    from matplotlib.image import imread

    logger.experiment.add_text("autoattack/report", (run_dir / "report.md").read_text())
    for check in () if results.sanity is None else results.sanity.checks:
        if check.verdict in SCORES:
            logger.experiment.add_scalar(f"sanity/{check.id}", SCORES[check.verdict], 0)
    picture = imread(run_dir / "report.png")
    logger.experiment.add_image("autoattack/report", picture[..., :3], dataformats="HWC")
