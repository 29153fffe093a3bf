"""The named shapes of the masked autoencoder, each a documented factory."""

import difflib
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, ClassVar, Protocol, TypeVar

from maep_lightning.models.mae import MAEConfig
from maep_lightning.models.resnet import IMAGENET_MEAN, IMAGENET_STD


def mae_vit_tiny_patch4_32() -> MAEConfig:
    """Width 192, depth 6 + 2, 64 patches of 4x4 on 32 px: 3.1 M parameters, the CPU-scale reference."""
    return MAEConfig()


def mae_vit_tiny_patch2_32() -> MAEConfig:
    """As `mae_vit_tiny_patch4_32` with 256 patches of 2x2."""
    return MAEConfig(patch_size=2)


def mae_vit_small_patch4_32() -> MAEConfig:
    """Width 384, depth 12 + 4, patches of 4x4 on 32 px: 23 M parameters."""
    return MAEConfig(width=384, depth=12, heads=6, decoder_width=192, decoder_depth=4, decoder_heads=6)


def mae_vit_small_patch2_32() -> MAEConfig:
    """As `mae_vit_small_patch4_32` with 256 patches of 2x2."""
    return replace(mae_vit_small_patch4_32(), patch_size=2)


def mae_vit_base_patch4_32() -> MAEConfig:
    """Width 768, depth 12 + 4, patches of 4x4 on 32 px: 92 M parameters."""
    return MAEConfig(width=768, depth=12, heads=12, decoder_width=384, decoder_depth=4, decoder_heads=12)


def mae_vit_base_patch2_32() -> MAEConfig:
    """As `mae_vit_base_patch4_32` with 256 patches of 2x2."""
    return replace(mae_vit_base_patch4_32(), patch_size=2)


def mae_vit_base_patch16_224() -> MAEConfig:
    """The ViT-B/16 of He et al. 2022 at 224 px, decoder width 512 and depth 8: 112 M parameters; plain output."""
    return MAEConfig(
        image_size=224, patch_size=16, width=768, depth=12, heads=12,
        decoder_width=512, decoder_depth=8, decoder_heads=16, residual=False, norm_eps=1e-6,
        mean=IMAGENET_MEAN, std=IMAGENET_STD,
    )  # fmt: skip


def maep_conv_patch4_32() -> MAEConfig:
    """A small ViT (width 96, depth 3 + 1) and a convolutional refinement, 0.7 M parameters: the CPU-scale default."""
    return MAEConfig(
        width=96, depth=3, heads=3, decoder_width=96, decoder_depth=1, decoder_heads=3, refine_depth=8, refine_width=64
    )


def maep_deep_patch4_32() -> MAEConfig:
    """As `maep_conv_patch4_32` with a deeper refinement that sees the whole image: 1.5 M parameters.

    The shape for training under white-box attack. It predicts pixels, not a correction: what is passed by the network
    carries the attack past it.
    """
    return replace(
        maep_conv_patch4_32(), residual=False, refine_kind="deep", refine_depth=3, refine_width=32, squash=True
    )


SHAPES: dict[str, Callable[[], MAEConfig]] = {
    factory.__name__: factory
    for factory in (
        mae_vit_tiny_patch4_32,
        mae_vit_tiny_patch2_32,
        mae_vit_small_patch4_32,
        mae_vit_small_patch2_32,
        mae_vit_base_patch4_32,
        mae_vit_base_patch2_32,
        mae_vit_base_patch16_224,
        maep_conv_patch4_32,
        maep_deep_patch4_32,
    )
}


class _Config(Protocol):
    __dataclass_fields__: ClassVar[dict[str, Any]]


ConfigT = TypeVar("ConfigT", bound=_Config)


def configure(shapes: Mapping[str, Callable[[], ConfigT]], name: str, overrides: dict[str, Any]) -> ConfigT:
    """The configuration of a named shape with some of its fields replaced.

    Args:
        shapes: Factories of configurations by name.
        name: A key of `shapes`.
        overrides: Fields to replace.

    Returns:
        The configuration.

    Raises:
        ValueError: If the shape or a field is unknown; the message lists the nearest names.
    """
    if name not in shapes:
        nearest = difflib.get_close_matches(name, shapes, n=3) or sorted(shapes)
        raise ValueError(f"Unknown shape {name!r}; did you mean {', '.join(nearest)}?")
    config = shapes[name]()
    unknown = set(overrides) - set(config.__dataclass_fields__)
    if unknown:
        known = ", ".join(config.__dataclass_fields__)
        raise ValueError(f"Unknown architecture fields {sorted(unknown)}; known are {known}.")
    return replace(config, **overrides)
