"""What every stage that trains a purifier before a frozen classifier shares."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from maep_lightning.models.classifiers import load_classifier
from maep_lightning.models.lora import Target, inject_lora
from maep_lightning.models.purifier import Purifier
from maep_lightning.models.registry import create_purifier, load_trained
from maep_lightning.tasks.base import Optimization, Task


@dataclass
class LoRA:
    """Low-rank adaptation of the decoder; everything else is frozen.

    Args:
        rank: Rank of the update.
        alpha: Scale of the update; it is divided by the rank.
        targets: Layers of each block: `qkv`, `proj`, `mlp`.
    """

    rank: int = 8
    alpha: float = 16.0
    targets: Sequence[Target] = ("qkv", "proj", "mlp")


class PurifierTask(Task):
    """A stage that trains a purifier, with the frozen classifier at hand that it is to defend.

    Args:
        classifier: File of the frozen classifier.
        classifier_name: What network the classifier's file holds, if it does not say it itself.
        num_classes: Number of classes K, needed with `classifier_name`.
        weights: File of the purifier to start from, such as the one pre-training left; None starts from scratch.
        shape: Name of the architecture, used when `weights` is None.
        overrides: Fields of the shape to replace, used when `weights` is None.
        lora: Train adapters of this kind on the decoder instead of the whole network.
        optimization: The optimiser's settings.
    """

    def __init__(
        self,
        classifier: str,
        classifier_name: str | None = None,
        num_classes: int | None = None,
        weights: str | None = None,
        shape: str = "maep_conv_patch4_32",
        overrides: dict[str, Any] | None = None,
        lora: LoRA | None = None,
        optimization: Optimization | None = None,
    ) -> None:
        super().__init__(optimization)
        self.classifier = load_classifier(classifier, classifier_name, num_classes)
        if weights is None:
            self.purifier = create_purifier(shape, **(overrides or {}))
        else:
            self.purifier = load_trained(weights).train()
        if lora is not None:
            if not isinstance(self.purifier, Purifier):
                raise ValueError(f"LoRA adapts the decoder of a masked autoencoder, which {weights or shape} has not.")
            self.purifier.requires_grad_(False)
            inject_lora(self.purifier.mae.decoder_blocks, lora.rank, lora.alpha, lora.targets)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Leave the frozen classifier out: it comes from its own file."""
        for name in self.classifier.state_dict():
            del checkpoint["state_dict"][f"classifier.{name}"]

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Put the classifier of the file in."""
        for name, value in self.classifier.state_dict().items():
            checkpoint["state_dict"][f"classifier.{name}"] = value

    def trained(self) -> nn.Module:
        """The purifier."""
        return self.purifier

    def on_fit_start(self) -> None:
        """Also keep the classifier in evaluation mode, which Lightning does not promise."""
        super().on_fit_start()
        self.classifier.eval()

    def export(self, path: Path, provenance: dict[str, Any]) -> None:
        """Write the purifier, adapters merged."""
        self.purifier.save_pretrained(path, provenance)
