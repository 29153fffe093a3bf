"""What every stage that trains a purifier before a frozen classifier shares."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from torch import nn

from maep_lightning.models.classifiers import load_classifier
from maep_lightning.models.lora import Target, inject_lora
from maep_lightning.models.purifier import Purifier
from maep_lightning.models.registry import create_purifier, load_trained
from maep_lightning.tasks.base import Optimization, Task

Trainable = Literal["all", "decoder"]


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
        trainable: `all`, or `decoder` for the ViT decoder alone, at full rank; encoder and refinement are frozen.
        lora: Train adapters of this kind on the decoder, and nothing else.
        optimization: The optimiser's settings.

    Raises:
        ValueError: If both a `trainable` part and `lora` are asked for.
    """

    def __init__(
        self,
        classifier: str,
        classifier_name: str | None = None,
        num_classes: int | None = None,
        weights: str | None = None,
        shape: str = "maep_conv_patch4_32",
        overrides: dict[str, Any] | None = None,
        trainable: Trainable = "all",
        lora: LoRA | None = None,
        optimization: Optimization | None = None,
    ) -> None:
        super().__init__(optimization)
        self.classifier = load_classifier(classifier, classifier_name, num_classes)
        if weights is None:
            self.purifier = create_purifier(shape, **(overrides or {}))
        else:
            self.purifier = load_trained(weights).train()
        if trainable != "all" and lora is not None:
            raise ValueError(f"lora trains adapters alone, trainable = {trainable} the layers themselves: choose one.")
        if trainable == "all" and lora is None:
            return
        if not isinstance(self.purifier, Purifier):
            raise ValueError(f"Only masked autoencoders have a decoder to train alone; {weights or shape} is not one.")
        # In evaluation mode, so that the running statistics of a frozen refinement stay as well.
        self.purifier.requires_grad_(False).eval()
        if lora is None:
            for name, parameter in self.purifier.mae.named_parameters():
                parameter.requires_grad = name.startswith("decoder_") or name == "mask_token"
        else:
            inject_lora(self.purifier.mae.decoder_blocks, lora.rank, lora.alpha, lora.targets)

    def frozen(self) -> dict[str, nn.Module]:
        """The networks beside the purifier, by the name of their attribute."""
        return {name: network for name, network in self.named_children() if network is not self.purifier}

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Leave the frozen networks out: they come from their own files."""
        for child, network in self.frozen().items():
            for name in network.state_dict():
                del checkpoint["state_dict"][f"{child}.{name}"]

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Put the frozen networks of the files in."""
        for child, network in self.frozen().items():
            for name, value in network.state_dict().items():
                checkpoint["state_dict"][f"{child}.{name}"] = value

    def trained(self) -> nn.Module:
        """The purifier."""
        return self.purifier

    def on_fit_start(self) -> None:
        """Also keep frozen networks in evaluation mode, which Lightning does not promise."""
        super().on_fit_start()
        for network in self.frozen().values():
            network.eval()

    def export(self, path: Path, provenance: dict[str, Any]) -> None:
        """Write the purifier, adapters merged."""
        self.purifier.save_pretrained(path, provenance)
