"""The purifier: images in, purified images out."""

from pathlib import Path
from typing import Any, Self

from torch import Tensor, nn

from maep_lightning.models.lora import merge_lora
from maep_lightning.models.mae import MAEConfig, MaskedAutoencoder
from maep_lightning.models.weights import load_state, read_weights, write_weights

ZOO = Path(__file__).parents[1] / "zoo"


class Purifier(nn.Module):
    """A masked autoencoder used as a defence: at mask ratio 0 it is deterministic and differentiable.

    Args:
        mae: The network, which it shares with whoever else holds it.
    """

    def __init__(self, mae: MaskedAutoencoder) -> None:
        super().__init__()
        self.mae = mae

    def forward(self, images: Tensor) -> Tensor:
        """Purify images.

        Args:
            images: `(B, 3, H, W)` in [0, 1]; H and W multiples of the patch size.

        Returns:
            The purified images, the same shape, in [0, 1].

        Raises:
            ValueError: If the images do not have 3 channels or the patches do not divide them.
        """
        if images.ndim != 4 or images.shape[1] != 3:
            raise ValueError(f"The purifier takes images (B, 3, H, W) in [0, 1], not a tensor {tuple(images.shape)}.")
        return self.mae(images, mask_ratio=0.0).images.clamp(0, 1)  # type: ignore[no-any-return]

    def save_pretrained(self, path: str | Path, provenance: dict[str, Any] | None = None) -> None:
        """Write architecture and weights into one safetensors file; LoRA adapters are merged.

        Args:
            path: The file.
            provenance: What made it (data, stages, seed, commit); JSON types only.
        """
        merged = merge_lora(self.mae)
        header = {"kind": "purifier", "config": self.mae.config.to_dict(), "provenance": provenance or {}}
        write_weights(path, merged.state_dict(), header)

    @classmethod
    def from_pretrained(cls, path: str | Path) -> Self:
        """Rebuild a purifier from `save_pretrained`'s file, in evaluation mode.

        Args:
            path: The file, or the name of one that is shipped, such as `maep_conv_patch4_32_cifar10`.

        Returns:
            The purifier.

        Raises:
            FileNotFoundError: If there is no such file.
            ValueError: If the file is corrupt, or not a purifier.
        """
        shipped = ZOO / f"{path}.safetensors"
        state, header = read_weights(shipped if shipped.is_file() and not Path(path).exists() else path)
        if header.get("kind") != "purifier":
            kind = header.get("kind", "file of bare weights")
            raise ValueError(f"{path} is a {kind}, not a purifier; stages write purifier.safetensors.")
        mae = MaskedAutoencoder(MAEConfig(**header["config"]))
        load_state(mae, state, path)
        return cls(mae).eval()
