"""Weights of published masked autoencoders, in the format of https://github.com/facebookresearch/mae."""

import math
from dataclasses import dataclass
from pathlib import Path

import torch
from timm.layers.patch_embed import resample_patch_embed
from torch import Tensor

from maep_lightning.functional.patches import sincos_position_table
from maep_lightning.models.mae import MaskedAutoencoder
from maep_lightning.models.resnet import IMAGENET_MEAN, IMAGENET_STD
from maep_lightning.models.weights import read_weights

_ENCODER = ("cls_token", "patch_embed.", "blocks.", "norm.")
_DECODER = ("mask_token", "decoder_")
_KERNEL = "patch_embed.proj.weight"


@dataclass(frozen=True)
class MatchReport:
    """What a file gave to a masked autoencoder, as names of tensors.

    Args:
        source: The file.
        matched: Taken as they are.
        resampled: Taken after resampling to another patch size.
        kept: Of the network, left as initialised.
        unused: Of the file, left aside.
        notes: What else there is to know.
    """

    source: str
    matched: list[str]
    resampled: list[str]
    kept: list[str]
    unused: list[str]
    notes: list[str]

    def __str__(self) -> str:
        """One line a kind, and one a note."""
        lines = [f"Weights of {self.source}:"]
        for kind in ("matched", "resampled", "kept", "unused"):
            names: list[str] = getattr(self, kind)
            parts = ", ".join(sorted({name.split(".")[0] for name in names}))
            lines.append(f"  {kind:9} {len(names):4}  {parts}".rstrip())
        return "\n".join(lines + [f"  {note}" for note in self.notes])


def is_published(path: str | Path) -> bool:
    """Whether a file holds bare weights, as published ones are, rather than something this package wrote.

    Raises:
        ValueError: If the file is corrupt or holds no weights.
    """
    return Path(path).is_file() and "kind" not in read_weights(path)[1]


def load_published(mae: MaskedAutoencoder, path: str | Path) -> MatchReport:
    """Load a published encoder into a masked autoencoder, and the decoder where the file has one that fits.

    Positions are not loaded: they are a formula here, and the file's table must agree with it. The encoder must fit but
    for the patch size, to which the patch embedding is resampled (FlexiViT, Beyer et al. 2023). The decoder is taken
    whole or not at all.

    Args:
        mae: The network, changed in place.
        path: `.pth` with `{"model": {...}}`, such as `mae_pretrain_vit_base.pth`, or a bare state dict of those names.

    Returns:
        What matched and what did not.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the file is no such autoencoder, of another size, or with other positions.
    """
    state = read_weights(path)[0]
    own = mae.state_dict()
    notes, resampled = [], []
    tables = {name: state.pop(name) for name in ("pos_embed", "decoder_pos_embed") if name in state}
    size = own[_KERNEL].shape[-2:]
    if _KERNEL in state and state[_KERNEL].ndim == 4 and state[_KERNEL].shape[-2:] != size:
        state[_KERNEL] = resample_patch_embed(state[_KERNEL].float(), list(size))
        resampled.append(_KERNEL)

    encoder, decoder = ({n for n in own if n.startswith(part)} for part in (_ENCODER, _DECODER))
    fitting = {name for name, value in state.items() if name in own and own[name].shape == value.shape}
    surplus = {name for name in state if name.startswith("blocks.")} - encoder
    if wrong := sorted((encoder - fitting) | surplus):
        raise ValueError(
            f"{path} does not fit the encoder of this shape (width {mae.config.width}, depth {mae.config.depth}): "
            f"{len(wrong)} tensors missing, surplus or of another shape, such as {', '.join(wrong[:3])}. It must have "
            "the names of facebookresearch/mae, as mae_pretrain_vit_base.pth has for mae_vit_base_patch16_224, or be "
            "the purifier.safetensors that a stage leaves."
        )
    taken = encoder
    if not any(name.startswith(_DECODER) for name in state):
        notes.append("The file holds no decoder; ours starts afresh.")
    elif mae.config.residual:
        notes.append("The file's decoder predicts pixels, ours (residual: true) corrections; ours starts afresh.")
    elif decoder - fitting:
        notes.append("The file's decoder is of another shape; ours starts afresh.")
    else:
        taken = encoder | decoder
    for name, table in tables.items():
        if name == "pos_embed" or taken != encoder:
            _check_positions(name, table, path)
    if (tuple(mae.config.mean), tuple(mae.config.std)) != (IMAGENET_MEAN, IMAGENET_STD):
        notes.append("Published weights expect ImageNet's mean and std; this shape normalises by others.")
    mae.load_state_dict({name: state[name] for name in taken}, strict=False)
    return MatchReport(
        str(path), sorted(taken.difference(resampled)), resampled, sorted(own.keys() - taken),
        sorted(state.keys() - taken), notes,
    )  # fmt: skip


def _check_positions(name: str, table: Tensor, path: str | Path) -> None:
    side = math.isqrt(table.shape[1] - 1)
    ours = sincos_position_table(table.shape[2], (side, side))
    expected = torch.cat([torch.zeros(1, ours.shape[1]), ours])[None]
    if table.shape != expected.shape or not torch.allclose(table.float(), expected, atol=1e-3):
        raise ValueError(
            f"{name} of {path} is not the sine-cosine table of a square grid, so its weights were trained with other "
            "positions than this network computes. Fine-tuned classifiers are such files: take the pre-trained one."
        )
