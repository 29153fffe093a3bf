"""Stage 0: a classifier, for whoever has no frozen one to defend."""

from pathlib import Path
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from maep_lightning.models.classifiers import create_classifier, save_classifier
from maep_lightning.tasks.base import Optimization, Task


class ClassifierTraining(Task):
    """Plain training with cross-entropy.

    Args:
        classifier: Name of the network, as in `create_classifier`.
        num_classes: Number of classes K.
        label_smoothing: Probability mass spread over all classes, in [0, 1).
        optimization: The optimiser's settings.
    """

    def __init__(
        self,
        classifier: str = "resnet20",
        num_classes: int = 10,
        label_smoothing: float = 0.0,
        optimization: Optimization | None = None,
    ) -> None:
        super().__init__(optimization)
        self.save_hyperparameters(ignore=["optimization"])
        self.name = classifier
        self.num_classes = num_classes
        self.label_smoothing = label_smoothing
        self.classifier = create_classifier(classifier, num_classes)

    def trained(self) -> nn.Module:
        """The classifier."""
        return self.classifier

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        """Cross-entropy of a batch (images `(B, 3, H, W)` in [0, 1], labels `(B,)`, ...)."""
        images, labels = batch[0], batch[1]
        loss = F.cross_entropy(self.classifier(images), labels, label_smoothing=self.label_smoothing)
        self.log("train/loss", loss, prog_bar=True)
        return loss

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        """Accuracy on the held-out part of the training set."""
        images, labels = batch[0], batch[1]
        correct = (self.classifier(images).argmax(1) == labels).float()
        self.log_mean("val/acc_clean", correct.mean(), len(labels))

    def test_step(self, batch: Any, batch_idx: int) -> None:
        """Accuracy on the test images."""
        images, labels = batch[0], batch[1]
        correct = (self.classifier(images).argmax(1) == labels).float()
        self.log_mean("test/acc_clean", correct.mean(), len(labels))

    def export(self, path: Path, provenance: dict[str, Any]) -> None:
        """Write the classifier."""
        save_classifier(self.classifier, path, self.name, self.num_classes, provenance)
