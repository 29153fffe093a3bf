"""The stage of judgement: a frozen classifier behind a purifier, neither trained."""

from functools import partial
from typing import Any

import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor, nn
from torchmetrics import MeanMetric

from maep_lightning.attacks.target import check_logits
from maep_lightning.evaluation.framing import check_framing
from maep_lightning.evaluation.inputs import class_mismatch
from maep_lightning.evaluation.normalization import FURTHER, check_normalization
from maep_lightning.functional.pixels import unit_range
from maep_lightning.models.classifiers import load_classifier
from maep_lightning.models.defended import stages
from maep_lightning.models.policies import CHUNK, apply_policy
from maep_lightning.models.registry import load_purifier
from maep_lightning.models.repeated import Aggregate, RepeatedPurifier

_ONCE: dict[str, Any] = {"mask_ratio": 0.0, "masks": 1, "aggregate": "mean", "passes": 1}


class PurifierEvaluation(LightningModule):
    """Clean accuracy with and without the purifier, and the purified images; attacks are the callback's work.

    Args:
        classifier: File of the frozen classifier; None where only images are purified.
        purifier: File of the purifier, or a text such as `jpeg:75` (see `maep_lightning.models.registry`); None judges
            the bare classifier.
        classifier_name: What network the classifier's file holds, if it does not say it itself; or options alone, such
            as `norm=half`.
        num_classes: Number of classes K, needed with `classifier_name`.
        mask_ratio: Share of the patches that is removed at random at test time, in [0, 1); above 0 the purifier is
            stochastic.
        masks: Random masks for each image.
        aggregate: What becomes of the purified images of several masks: `mean` or `vote`, see `RepeatedPurifier`.
        passes: How often the purifier is applied, each time to what it returned before.
        policy: How the purifier serves images of another size than it was trained on: `native`, `tile`, `overlap`,
            `interpolate` or `resize`; see `maep_lightning.models.policies.apply_policy`.
        chunk: Tiles that the policy purifies at once: memory against speed.
        check: So many test images of an `ImageDataModule` are classified behind other normalisations too, before the
            test, and a warning says if the classifier's own seems wrong; where they leave it open, 1,024 are. Another
            says if files are not resized and cropped as fetched weights want them. 0 leaves both out.

    Attributes:
        takes_any_size: Whether `predict` takes images whose sides are no multiples of the purifier's: every policy but
            `native` does, from one pixel up.
    """

    def __init__(
        self,
        classifier: str | None = None,
        purifier: str | None = None,
        classifier_name: str | None = None,
        num_classes: int | None = None,
        mask_ratio: float = 0.0,
        masks: int = 1,
        aggregate: Aggregate = "mean",
        passes: int = 1,
        policy: str = "native",
        chunk: int = CHUNK,
        check: int = 256,
    ) -> None:
        super().__init__()
        self.save_hyperparameters()
        if classifier is None and purifier is None:
            raise ValueError("Give the file of a classifier, a purifier, or both: there is nothing to evaluate.")
        if purifier is None and policy != "native":
            raise ValueError(f"The policy {policy} serves a purifier: give --model.init_args.purifier FILE.")
        self.check = check
        self.takes_any_size = policy != "native"
        self.classifier: nn.Module | None = None
        if classifier is not None:
            self.classifier = load_classifier(classifier, classifier_name, num_classes)
        self.purifier: nn.Module | None = None
        if purifier is not None:
            self.purifier = load_purifier(purifier)
        repeats: dict[str, Any] = {"mask_ratio": mask_ratio, "masks": masks, "aggregate": aggregate, "passes": passes}
        self.repeats = {name: value for name, value in repeats.items() if value != _ONCE[name]}
        """The options of `RepeatedPurifier` that are set; none for the purifier as it is."""
        if self.repeats:
            if self.purifier is None:
                raise ValueError(f"{', '.join(self.repeats)} are options of a purifier, and there is none.")
            if policy != "native":
                raise ValueError(
                    f"The policy {policy} and {', '.join(self.repeats)} cannot be combined: leave one out."
                )
            self.purifier = RepeatedPurifier(self.purifier, **self.repeats)
        if self.purifier is not None:
            self.purifier = apply_policy(self.purifier, policy, chunk).requires_grad_(False)
        # Sums and counts, so that processes with batches of different size give the figure of one process.
        self.acc_clean, self.acc_purified = MeanMetric(), MeanMetric()

    def on_test_start(self) -> None:
        """Warn of a classifier that does not get its images as it was trained to, or has more logits than the data.

        Raises:
            ValueError: If it has fewer logits than the data have classes.
        """
        data: Any = getattr(self.trainer, "datamodule", None)
        if self.classifier is None or not hasattr(data, "test_sample"):
            return
        image = unit_range(data.test_sample(1).images.to(self.device))
        with torch.no_grad():
            classes = check_logits(self.classifier(image)).shape[1]
        if mismatch := class_mismatch(classes, getattr(data, "class_names", None)):
            rank_zero_warn(mismatch)
        if self.check > 0:
            images, labels = data.test_sample(self.check)
            more = partial(data.test_sample, FURTHER)
            found = check_normalization(self.classifier, images, labels, more=more, device=self.device)
            for warning in (*found.warnings, *check_framing(self.classifier, getattr(data, "framing", None))):
                rank_zero_warn(warning)

    def test_step(self, batch: Any, batch_idx: int) -> None:
        """Count correct predictions on clean images (B, 3, H, W) in [0, 1]."""
        if self.classifier is None:
            raise ValueError("lightning test needs a classifier: give --model.init_args.classifier FILE.")
        images, labels = batch[0], batch[1]
        self._count("acc_clean", self.acc_clean, self.classifier(images), labels)
        if self.purifier is not None:
            purifier, classifier = stages(self.purifier, self.classifier)
            self._count("acc_purified", self.acc_purified, classifier(purifier(images)), labels)

    def _count(self, name: str, metric: MeanMetric, logits: Tensor, labels: Tensor) -> None:
        metric.update((logits.argmax(1) == labels).double())
        self.log(f"test/{name}", metric, on_step=False, on_epoch=True, batch_size=len(labels))

    def predict_step(self, batch: Any, batch_idx: int) -> Tensor:
        """Purify a batch of images `(B, 3, H, W)` in [0, 1]."""
        if self.purifier is None:
            raise ValueError(
                "lightning predict needs a purifier: give --model.init_args.purifier a file, or a text such as jpeg:75."
            )
        if self.repeats.get("aggregate") == "vote":
            raise ValueError("A vote leaves no purified image: give --model.init_args.aggregate mean to write some.")
        purified: Tensor = self.purifier(batch[0])
        return purified
