"""Purifiers: images in, purified images out. What they share, and the masked autoencoder among them."""

from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any, ClassVar, Self

from torch import Tensor, nn

from maep_lightning.models.lora import merged_state
from maep_lightning.models.mae import MAEConfig, MaskedAutoencoder
from maep_lightning.models.weights import load_state, read_weights, write_weights

ZOO = Path(__file__).parents[1] / "zoo"


class ImagePurifier(nn.Module, ABC):
    """Images in [0, 1] to images of the same shape in [0, 1]; a subclass says how in `purify`."""

    def forward(self, images: Tensor) -> Tensor:
        """Purify images.

        Args:
            images: `(B, 3, H, W)` in [0, 1].

        Returns:
            The purified images, the same shape, in [0, 1].

        Raises:
            ValueError: If the images do not have 3 channels, or a size that this purifier cannot take.
        """
        if images.ndim != 4 or images.shape[1] != 3:
            raise ValueError(f"The purifier takes images (B, 3, H, W) in [0, 1], not a tensor {tuple(images.shape)}.")
        return self.purify(images)

    @abstractmethod
    def purify(self, images: Tensor) -> Tensor:
        """The purified images of `(B, 3, H, W)`, the same shape, in [0, 1]."""


class PretrainedPurifier(ImagePurifier):
    """A purifier with weights, which travels as one safetensors file with its architecture in the header."""

    architecture: ClassVar[str]
    """How the header names it."""
    trained_on: str | None = None
    """The data of the last stage, where the file that it was loaded from says them."""

    @property
    @abstractmethod
    def network(self) -> nn.Module:
        """What holds the weights."""

    @abstractmethod
    def config(self) -> dict[str, Any]:
        """What `from_config` rebuilds the architecture from; JSON types only."""

    @classmethod
    @abstractmethod
    def from_config(cls, config: dict[str, Any]) -> Self:
        """A freshly initialised purifier of the architecture that `config` returned."""

    def purify(self, images: Tensor) -> Tensor:
        """See `ImagePurifier.purify`."""
        return self.restore(images).clamp(0, 1)

    @abstractmethod
    def restore(self, images: Tensor, mask_ratio: float = 0.0) -> Tensor:
        """Purify with a part of the patches removed, as in training.

        Args:
            images: `(B, 3, H, W)` in [0, 1].
            mask_ratio: Share of the patches that is removed, in [0, 1); 0 is deterministic.

        Returns:
            `(B, 3, H, W)` on the [0, 1] scale, not clamped, which would take the gradient away from a loss.
        """

    def save_pretrained(self, path: str | Path, provenance: dict[str, Any] | None = None) -> None:
        """Write architecture and weights into one safetensors file; LoRA adapters are merged.

        Args:
            path: The file.
            provenance: What made it (data, stages, seed, commit); JSON types only.
        """
        header = {"kind": "purifier", "architecture": self.architecture, "config": self.config()}
        write_weights(path, merged_state(self.network), header | {"provenance": provenance or {}})

    @classmethod
    def from_pretrained(cls, path: str | Path) -> Self:
        """Rebuild a purifier from `save_pretrained`'s file, in evaluation mode.

        Args:
            path: The file, or the name of one that is shipped, such as `maep_conv_patch4_32_cifar10`.

        Returns:
            The purifier.

        Raises:
            FileNotFoundError: If there is no such file.
            ValueError: If the file is corrupt, or not a purifier of this architecture.
        """
        state, header = read_purifier(path)
        if header["architecture"] != cls.architecture:
            raise ValueError(
                f"{path} is a purifier of architecture {header['architecture']}, not {cls.architecture};"
                " maep_lightning.models.registry.load_purifier loads any."
            )
        return cls.rebuild(state, header, path)

    @classmethod
    def rebuild(cls, state: dict[str, Tensor], header: dict[str, Any], source: str | Path) -> Self:
        """A purifier from what `read_purifier` returned, in evaluation mode.

        Args:
            state: Tensors by name.
            header: With the architecture in `config`, as that method returned it.
            source: Where they came from, for the message.

        Returns:
            The purifier.

        Raises:
            ValueError: If weights and architecture do not fit.
        """
        purifier = cls.from_config(header["config"])
        load_state(purifier.network, state, source)
        purifier.trained_on = (header.get("provenance") or {}).get("data")
        return purifier.eval()


def read_purifier(path: str | Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Weights and header of a purifier's file.

    Args:
        path: The file, or the name of one that is shipped.

    Returns:
        The tensors by name, and the header with `architecture` and `config`.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the file is corrupt, or not a purifier.
    """
    shipped = ZOO / f"{path}.safetensors"
    state, header = read_weights(shipped if shipped.is_file() and not Path(path).exists() else path)
    if header.get("kind") != "purifier":
        kind = header.get("kind", "file of bare weights")
        raise ValueError(f"{path} is a {kind}, not a purifier; stages write purifier.safetensors.")
    # Files from before there was another architecture do not name theirs.
    return state, {"architecture": Purifier.architecture} | header


class Purifier(PretrainedPurifier):
    """A masked autoencoder used as a defence: at mask ratio 0 it is deterministic and differentiable.

    Args:
        mae: The network, which it shares with whoever else holds it.
    """

    architecture = "mae"

    def __init__(self, mae: MaskedAutoencoder) -> None:
        super().__init__()
        self.mae = mae

    @property
    def network(self) -> MaskedAutoencoder:
        """The masked autoencoder."""
        return self.mae

    def config(self) -> dict[str, Any]:
        """The fields of `MAEConfig`."""
        return self.mae.config.to_dict()

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> Self:
        """A freshly initialised one from the fields of `MAEConfig`."""
        return cls(MaskedAutoencoder(MAEConfig(**config)))

    def restore(self, images: Tensor, mask_ratio: float = 0.0) -> Tensor:
        """Reconstruct images from a random part of their patches; see `PretrainedPurifier.restore`.

        Raises:
            ValueError: If the patches do not divide the images.
        """
        return self.mae(images, mask_ratio).images  # type: ignore[no-any-return]
