"""A local implicit purifier after DISCO, the parent of MAEP's purification loss."""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.ops import MLP

from maep_lightning.models.layers import Normalize
from maep_lightning.models.purifier import PretrainedPurifier


@dataclass(frozen=True)
class DiscoConfig:
    """The architecture of a local implicit purifier; the defaults are the paper's, 1.57 M parameters.

    Args:
        width: Channels of the encoder.
        depth: Residual blocks of the encoder.
        mlp_width: Channels of the hidden layers of the decoder.
        mlp_depth: Hidden layers of the decoder.
        mean: Per-channel mean of the input normalisation.
        std: Per-channel standard deviation of the input normalisation.
    """

    width: int = 64
    depth: int = 16
    mlp_width: int = 256
    mlp_depth: int = 4
    mean: Sequence[float] = (0.5, 0.5, 0.5)
    std: Sequence[float] = (0.5, 0.5, 0.5)


class ResidualBlock(nn.Module):
    """Two convolutions around a ReLU, without normalisation (EDSR, Lim et al. 2017).

    Args:
        width: Channels.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(width, width, 3, padding=1), nn.ReLU(), nn.Conv2d(width, width, 3, padding=1)
        )

    def forward(self, features: Tensor) -> Tensor:
        """`(B, D, H, W)` to the same shape."""
        return features + self.layers(features)  # type: ignore[no-any-return]


class Disco(nn.Module):
    """A residual encoder without up-sampling, and an MLP that predicts each pixel from the features around it.

    After Ho and Vasconcelos, "DISCO: Adversarial Defense with Local Implicit Functions", NeurIPS 2022
    (https://arxiv.org/abs/2212.05630). The encoder is EDSR-baseline's, the decoder LIIF's (Chen et al. 2021): an MLP
    on the 3x3 neighbourhood of a feature, the offset of the queried point from it, and the size of the queried cell.
    A purifier queries the centres of the image's own pixels. There the offset is 0, the cell one feature (2 in LIIF's
    coordinates), and LIIF's ensemble over the four nearest features gives all weight to the pixel's own: the two are
    constant inputs, and the ensemble is left out.

    Args:
        config: The architecture.
    """

    def __init__(self, config: DiscoConfig) -> None:
        super().__init__()
        self.config = config
        d = config.width
        self.normalize = Normalize(config.mean, config.std)
        self.head = nn.Conv2d(3, d, 3, padding=1)
        self.body = nn.Sequential(*(ResidualBlock(d) for _ in range(config.depth)), nn.Conv2d(d, d, 3, padding=1))
        self.query: Tensor
        self.register_buffer("query", torch.tensor([0.0, 0.0, 2.0, 2.0]), persistent=False)
        self.mlp = MLP(9 * d + len(self.query), [*[config.mlp_width] * config.mlp_depth, 3])

    def forward(self, images: Tensor) -> Tensor:
        """Predict every pixel anew.

        Args:
            images: `(B, 3, H, W)` in [0, 1].

        Returns:
            `(B, 3, H, W)` on the [0, 1] scale, not clamped.
        """
        features = self.head(self.normalize(images))
        features = features + self.body(features)
        local = F.unfold(features, 3, padding=1).transpose(1, 2)  # (B, HW, 9D)
        pixels = self.mlp(torch.cat([local, self.query.expand(*local.shape[:2], -1)], dim=2))
        return self.normalize.inverse(pixels.transpose(1, 2).unflatten(2, images.shape[2:]))


class DiscoPurifier(PretrainedPurifier):
    """A local implicit network used as a defence: deterministic, differentiable, for images of any size.

    Args:
        disco: The network.
    """

    architecture = "disco"

    def __init__(self, disco: Disco) -> None:
        super().__init__()
        self.disco = disco

    @property
    def network(self) -> Disco:
        """The local implicit network."""
        return self.disco

    def config(self) -> dict[str, Any]:
        """The fields of `DiscoConfig`."""
        return asdict(self.disco.config)

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> Self:
        """A freshly initialised one from the fields of `DiscoConfig`."""
        return cls(Disco(DiscoConfig(**config)))

    def restore(self, images: Tensor, mask_ratio: float = 0.0) -> Tensor:
        """Predict every pixel anew; see `PretrainedPurifier.restore`.

        Raises:
            ValueError: If a mask is asked for: there are no patches to remove.
        """
        if mask_ratio:
            raise ValueError(
                f"A local implicit purifier has no patches to remove: set mask_ratio to 0, not {mask_ratio}."
            )
        return self.disco(images)  # type: ignore[no-any-return]


def disco_base() -> DiscoConfig:
    """The paper's: 16 blocks of width 64 and 4 hidden layers of 256, 1.57 M parameters."""
    return DiscoConfig()


def disco_small() -> DiscoConfig:
    """4 blocks of width 32 and 2 hidden layers of 64, 0.1 M parameters: CPU scale."""
    return DiscoConfig(width=32, depth=4, mlp_width=64, mlp_depth=2)


DISCO_SHAPES: dict[str, Callable[[], DiscoConfig]] = {
    factory.__name__: factory for factory in (disco_base, disco_small)
}
