"""What every stage that trains a purifier before a frozen classifier shares."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

from lightning.pytorch.utilities import rank_zero_warn
from torch import nn

from maep_lightning.evaluation.framing import check_framing
from maep_lightning.evaluation.normalization import FURTHER, check_normalization
from maep_lightning.models.classifiers import load_classifier
from maep_lightning.models.lora import Target, inject_lora
from maep_lightning.models.mae import MaskedAutoencoder
from maep_lightning.models.purifier import Purifier
from maep_lightning.tasks.base import Optimization, Task
from maep_lightning.tasks.start import start_purifier

Trainable = Literal["all", "decoder"]

CHECKED = 64
"""Held-out images that the classifier is looked at with before training; more where they leave it open."""


@dataclass
class LoRA:
    """Low-rank adaptation of the decoder; everything else is frozen.

    Args:
        rank: Rank of the update.
        alpha: Scale of the update; it is divided by the rank.
        targets: Layers of each block: `qkv`, `proj`, `mlp`.

    Raises:
        ValueError: If `alpha` is not above 0.
    """

    rank: int = 8
    alpha: float = 16.0
    targets: Sequence[Target] = ("qkv", "proj", "mlp")

    def __post_init__(self) -> None:
        if self.alpha <= 0:
            raise ValueError(f"alpha scales the adapters, which learn nothing at {self.alpha}: give one above 0.")


def check_noise(std: float) -> None:
    """Refuse what is no standard deviation on the [0, 1] scale.

    Args:
        std: The standard deviation.

    Raises:
        ValueError: If it is not in [0, 1].
    """
    if not 0 <= std <= 1:
        raise ValueError(f"noise is a standard deviation on the [0, 1] scale, such as 0.1, not {std}.")


class PurifierTask(Task):
    """A stage that trains a purifier, with the frozen classifier at hand that it is to defend.

    Args:
        classifier: File of the frozen classifier.
        classifier_name: What network the classifier's file holds, if it does not say it itself; or options alone, such
            as `norm=half`.
        num_classes: Number of classes K, needed with `classifier_name`.
        weights: File to start from, such as the one pre-training left, or a published one (see `start_purifier`);
            None starts from scratch.
        shape: Name of the architecture; a purifier's file knows its own.
        overrides: Fields of the shape to replace.
        trainable: `all`, or `decoder` for the ViT decoder alone, at full rank; encoder and refinement are frozen.
        lora: Train adapters of this kind on the decoder, and nothing else.
        optimization: The optimiser's settings.

    Raises:
        ValueError: If both a `trainable` part and `lora` are asked for, or either from scratch or of a purifier without
            a decoder.
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
        self.purifier = start_purifier(weights, shape, overrides)
        if trainable != "all" and lora is not None:
            raise ValueError(f"lora trains adapters alone, trainable = {trainable} the layers themselves: choose one.")
        if trainable == "decoder" or lora is not None:
            if weights is None:
                raise ValueError(
                    "With lora, or trainable = decoder, the rest stays as it is: give the purifier's weights."
                )
            # In evaluation mode, so that the running statistics of a frozen refinement stay as well.
            self.purifier.requires_grad_(False).eval()
        if trainable == "decoder":
            for name, parameter in self.mae.named_parameters():
                parameter.requires_grad = name.startswith("decoder_") or name == "mask_token"
        if lora is not None:
            inject_lora(self.mae.decoder_blocks, lora.rank, lora.alpha, lora.targets)

    @property
    def mae(self) -> MaskedAutoencoder:
        """The masked autoencoder that the purifier is.

        Raises:
            ValueError: If it is of another architecture.
        """
        if not isinstance(self.purifier, Purifier):
            name = self.purifier.architecture
            raise ValueError(
                f"A decoder of its own, and masked patches, has a masked autoencoder only; this is {name}."
            )
        return self.purifier.mae

    def frozen(self) -> dict[str, nn.Module]:
        """The networks beside the purifier, by the name of their attribute."""
        return {name: network for name, network in self.named_children() if network is not self.purifier}

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Leave the frozen networks out: they come from their own files."""
        for child, network in self.frozen().items():
            for name in network.state_dict():
                # Under FSDP only the first process has a state to save.
                checkpoint["state_dict"].pop(f"{child}.{name}", None)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Put the frozen networks of the files in, where the strategy did not load the state itself, as FSDP's does."""
        for child, network in self.frozen().items():
            frozen = {f"{child}.{name}": value for name, value in network.state_dict().items()}
            checkpoint.get("state_dict", {}).update(frozen)

    def trained(self) -> nn.Module:
        """The purifier."""
        return self.purifier

    def on_fit_start(self) -> None:
        """Also keep frozen networks in evaluation mode, and warn of a classifier that gets its images wrongly.

        Only labels tell a wrong normalisation, so a stage that needs none is not warned of that.
        """
        super().on_fit_start()
        for network in self.frozen().values():
            network.eval()
        data: Any = getattr(self.trainer, "datamodule", None)
        for warning in check_framing(self.classifier, getattr(data, "framing", None)):
            rank_zero_warn(warning)
        if self.needs_labels and (shown := min(CHECKED, getattr(data, "val_size", 0))):
            images, labels = data.monitor_set(shown)
            more = partial(data.monitor_set, min(FURTHER, data.val_size))
            for warning in check_normalization(self.classifier, images, labels, more=more, device=self.device).warnings:
                rank_zero_warn(warning)

    def export(self, path: Path, provenance: dict[str, Any]) -> None:
        """Write the purifier, adapters merged."""
        self.purifier.save_pretrained(path, provenance)
