"""The masked autoencoder: ViT encoder, light ViT decoder, optional convolutional refinement."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal, NamedTuple, get_args

import torch
from timm.layers.norm import LayerNorm
from timm.layers.patch_embed import PatchEmbed
from timm.models.vision_transformer import Block
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from maep_lightning.functional.losses import masked_patch_loss, normalize_patches
from maep_lightning.functional.masking import random_masking
from maep_lightning.functional.patches import patchify, sincos_position_table, unpatchify
from maep_lightning.models.layers import DeepRefinement, Normalize, Refinement

RefineKind = Literal["convs", "deep"]

_REFINE_SCALE: dict[RefineKind, int] = {"convs": 2, "deep": 4}
"""Pixels of an image's side that become one in the coarsest map of a refinement."""

_TABLES = 4
"""Position tables that a network keeps, those of encoder and decoder for two sizes of images."""


@dataclass(frozen=True)
class MAEConfig:
    """The architecture of a masked autoencoder.

    Args:
        image_size: Side in pixels of the images it is trained on; other multiples of the patch size work too.
        patch_size: Side of a patch in pixels.
        width: Channels of the encoder.
        depth: Blocks of the encoder.
        heads: Attention heads of the encoder.
        decoder_width: Channels of the decoder.
        decoder_depth: Blocks of the decoder.
        decoder_heads: Attention heads of the decoder.
        residual: Whether the network predicts a correction of the visible patches instead of their pixels.
        refine_depth: Layers of the refinement after unpatchify; 0 is the paper's plain ViT.
        refine_width: Channels of the refinement.
        refine_kind: `convs`, a stack of convolutions, or `deep`, a residual network on two scales.
        squash: Whether the output passes a sigmoid (of slope 1 at mid-grey) into [0, 1] instead of being cut there. A
            cut has no gradient beyond the ends, where a network that learns under white-box attack soon arrives.
        norm_eps: What the last norm of encoder and of decoder add to the variance; facebookresearch/mae has 1e-6.
        mean: Per-channel mean of the input normalisation.
        std: Per-channel standard deviation of the input normalisation.

    Raises:
        ValueError: If a size is not positive, a width is no multiple of its heads and of 4, or `refine_kind` unknown.
    """

    image_size: int = 32
    patch_size: int = 4
    width: int = 192
    depth: int = 6
    heads: int = 3
    decoder_width: int = 128
    decoder_depth: int = 2
    decoder_heads: int = 4
    residual: bool = True
    refine_depth: int = 0
    refine_width: int = 64
    refine_kind: RefineKind = "convs"
    squash: bool = False
    norm_eps: float = 1e-5
    mean: Sequence[float] = (0.5, 0.5, 0.5)
    std: Sequence[float] = (0.25, 0.25, 0.25)

    def __post_init__(self) -> None:
        """Refuse what makes no network, in the words of the fields."""
        sizes = ("image_size", "patch_size", "width", "heads", "decoder_width", "decoder_heads")
        bounds = dict.fromkeys(sizes, 1) | {"depth": 0, "decoder_depth": 0, "refine_depth": 0}
        bounds["refine_width"] = 1 if self.refine_depth else 0
        for name, bound in bounds.items():
            if getattr(self, name) < bound:
                raise ValueError(f"{name} must be at least {bound}, not {getattr(self, name)}.")
        for part in ("", "decoder_"):
            width, heads = getattr(self, f"{part}width"), getattr(self, f"{part}heads")
            if width % heads or width % 4:
                raise ValueError(
                    f"{part}width must be a multiple of {part}heads, each of which gets an equal part, and of 4 for the"
                    f" table of positions; {width} and {heads} heads do not fit."
                )
        if self.refine_kind not in get_args(RefineKind):
            raise ValueError(f"refine_kind must be {' or '.join(get_args(RefineKind))}, not {self.refine_kind!r}.")

    def to_dict(self) -> dict[str, Any]:
        """The fields as plain numbers and lists."""
        fields = asdict(self)
        return {**fields, "mean": list(self.mean), "std": list(self.std)}


class MAEOutput(NamedTuple):
    """What a forward pass of `MaskedAutoencoder` returns.

    Attributes:
        images: The reconstruction in [0, 1] scale, `(B, 3, H, W)`, not clamped; inside it where the network squashes.
        patches: The decoder's prediction of the pixels of every patch, in the normalised space, `(B, L, P)`.
        mask: `(B, L)`, 1 for removed patches.
    """

    images: Tensor
    patches: Tensor
    mask: Tensor


class MaskedAutoencoder(nn.Module):
    """A masked autoencoder with ViT encoder and light ViT decoder (He et al. 2022), on timm blocks.

    Parameter names follow https://github.com/facebookresearch/mae. Beyond it: positions are computed for the grid at
    hand, so any resolution that the patch size divides works; `residual` adds the decoder's output to the visible
    patches; a refinement sees the ViT's image beside the visible pixels and removes what the patches leave.

    Args:
        config: The architecture; see `maep_lightning.models.shapes` for the named ones.

    Attributes:
        gradient_checkpointing: Whether the blocks compute their activations again in the backward pass instead of
            keeping them: the same gradients from less memory and one more forward pass. No part of the architecture.
    """

    def __init__(self, config: MAEConfig) -> None:
        super().__init__()
        self.config = config
        self.gradient_checkpointing = False
        p = config.patch_size
        self.normalize = Normalize(config.mean, config.std)
        self.patch_embed = PatchEmbed(None, p, 3, config.width, strict_img_size=False)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, config.width))
        self.blocks = _blocks(config.width, config.heads, config.depth)
        self.norm = nn.LayerNorm(config.width, config.norm_eps)

        self.decoder_embed = nn.Linear(config.width, config.decoder_width)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, config.decoder_width))
        self.decoder_blocks = _blocks(config.decoder_width, config.decoder_heads, config.decoder_depth)
        self.decoder_norm = nn.LayerNorm(config.decoder_width, config.norm_eps)
        self.decoder_pred = nn.Linear(config.decoder_width, p * p * 3)
        kind = {"convs": Refinement, "deep": DeepRefinement}[config.refine_kind]
        self.refinement = kind(config.refine_width, config.refine_depth) if config.refine_depth else None
        self._positions: dict[tuple[int, tuple[int, int], str], Tensor] = {}
        self._span: int | None = None
        self._initialize()

    def _initialize(self) -> None:
        for module in [self.patch_embed, *self.blocks, *self.decoder_blocks, self.decoder_embed, self.decoder_pred]:
            for layer in module.modules():
                if isinstance(layer, nn.Linear):
                    nn.init.xavier_uniform_(layer.weight)
                    nn.init.zeros_(layer.bias)
        weight = self.patch_embed.proj.weight
        nn.init.xavier_uniform_(weight.data.view(weight.shape[0], -1))
        nn.init.normal_(self.cls_token, std=0.02)
        nn.init.normal_(self.mask_token, std=0.02)
        if self.config.residual:
            nn.init.zeros_(self.decoder_pred.weight)

    def extra_repr(self) -> str:
        """What the fingerprint of a run tells networks apart by that neither weights nor layers show.

        The image size is that of the training grid, between whose positions others may be interpolated.
        """
        names = ("image_size", "heads", "decoder_heads", "residual", "squash")
        return ", ".join(f"{name}={getattr(self.config, name)}" for name in names)

    def interpolate_positions(self) -> None:
        """From here on the positions of any grid lie between those of the training grid, not beyond them."""
        self._span = self.config.image_size // self.config.patch_size
        self._positions.clear()

    def positions(self, width: int, grid: tuple[int, int], device: torch.device) -> Tensor:
        """The sine-cosine table `(1, L, width)` of a grid on a device; the last `_TABLES` are kept."""
        key = (width, grid, str(device))
        if key not in self._positions:
            if len(self._positions) >= _TABLES:
                del self._positions[next(iter(self._positions))]
            with torch.inference_mode(False):
                self._positions[key] = sincos_position_table(width, grid, self._span)[None].to(device)
        return self._positions[key]

    def forward_encoder(
        self,
        images: Tensor,
        mask_ratio: float,
        noise: Tensor | None = None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Encode the visible patches.

        Args:
            images: Normalised, `(B, 3, H, W)`.
            mask_ratio: Share of the patches that is removed, in [0, 1).
            noise: `(B, L)`; the patches with the smallest values are kept. Drawn from torch's global generator if None.

        Returns:
            The latent `(B, 1 + L_kept, D)`, the mask `(B, L)` and `ids_restore` `(B, L)`.
        """
        x = self.patch_embed(images)
        x = x + self.positions(self.config.width, self.grid(images), x.device)
        x, mask, ids_restore = random_masking(x, mask_ratio, noise)
        x = torch.cat([self.cls_token.expand(x.shape[0], -1, -1), x], dim=1)
        return self.norm(self._through(self.blocks, x)), mask, ids_restore

    def forward_decoder(self, latent: Tensor, ids_restore: Tensor, grid: tuple[int, int]) -> Tensor:
        """Decode all patches from the visible ones.

        Args:
            latent: `(B, 1 + L_kept, D)`.
            ids_restore: `(B, L)`.
            grid: Patches per column and per row.

        Returns:
            `(B, L, P)`.
        """
        x = self.decoder_embed(latent)
        cls, visible = x[:, :1], x[:, 1:]
        b, kept, d = visible.shape
        removed = ids_restore.shape[1] - kept
        if removed:
            tokens = torch.cat([visible, self.mask_token.to(x.dtype).expand(b, removed, d)], dim=1)
            visible = tokens.gather(1, ids_restore[:, :, None].expand(-1, -1, d))
        x = torch.cat([cls, visible + self.positions(d, grid, x.device)], dim=1)
        x = self._through(self.decoder_blocks, x)
        return self.decoder_pred(self.decoder_norm(x))[:, 1:]  # type: ignore[no-any-return]

    def _through(self, blocks: nn.ModuleList, x: Tensor) -> Tensor:
        for block in blocks:
            if self.gradient_checkpointing and torch.is_grad_enabled():
                # The blocks draw no random numbers, so there is no state to keep for the second pass.
                x = checkpoint(block, x, use_reentrant=False, preserve_rng_state=False)
            else:
                x = block(x)
        return x

    def forward(
        self,
        images: Tensor,
        mask_ratio: float = 0.0,
        noise: Tensor | None = None,
    ) -> MAEOutput:
        """Reconstruct images from a random part of their patches.

        Args:
            images: `(B, 3, H, W)` in [0, 1].
            mask_ratio: Share of the patches that is removed, in [0, 1); 0 is deterministic.
            noise: `(B, L)`; the patches with the smallest values are kept. Drawn from torch's global generator if None.

        Returns:
            The reconstruction, the predicted patches and the mask.
        """
        p, grid = self.config.patch_size, self.grid(images)
        normalized = self.normalize(images)
        latent, mask, ids_restore = self.forward_encoder(normalized, mask_ratio, noise)
        patches = self.forward_decoder(latent, ids_restore, grid).to(images.dtype)
        if self.config.residual or mask_ratio:
            visible = patchify(normalized, p) * (1 - mask[:, :, None])
        if self.config.residual:
            patches = patches + visible
        image = unpatchify(patches, p, grid)
        if self.refinement is not None:
            seen = unpatchify(visible + patches * mask[:, :, None], p, grid) if mask_ratio else normalized
            image = image + self.refinement(torch.cat([image, seen], dim=1)).to(images.dtype)
        pixels = self.normalize.inverse(image)
        return MAEOutput((4 * pixels - 2).sigmoid() if self.config.squash else pixels, patches, mask)

    def reconstruction_loss(self, images: Tensor, output: MAEOutput, norm_pix: bool = False) -> Tensor:
        """The MAE loss: mean squared error on the removed patches, in the normalised space.

        Args:
            images: The targets, `(B, 3, H, W)` in [0, 1].
            output: What `forward` returned.
            norm_pix: Whether each target patch is standardised by its own mean and variance.

        Returns:
            A scalar; 0 when nothing is masked.
        """
        target = patchify(self.normalize(images), self.config.patch_size)
        return masked_patch_loss(output.patches, normalize_patches(target) if norm_pix else target, output.mask)

    def grid(self, images: Tensor) -> tuple[int, int]:
        """Patches per column and per row of `images` `(B, C, H, W)`.

        Raises:
            ValueError: If the patch size, or the scale of the refinement, does not divide the image.
        """
        h, w = images.shape[-2:]
        p = self.config.patch_size
        if h % p or w % p:
            raise ValueError(f"Images of {h}x{w} pixels do not fit patches of {p}x{p}: resize or tile them first.")
        scale = _REFINE_SCALE[self.config.refine_kind] if self.refinement is not None else 1
        if h % scale or w % scale:
            raise ValueError(
                f"Images of {h}x{w} pixels do not fit the {self.config.refine_kind} refinement, whose maps have sides"
                f" {scale} times smaller: resize or tile them to multiples of {scale}."
            )
        return h // p, w // p


def _blocks(width: int, heads: int, depth: int) -> nn.ModuleList:
    # Named, since releases of timm differ in the block's default norm; this one adds 1e-6 to the variance.
    return nn.ModuleList([Block(width, heads, qkv_bias=True, norm_layer=LayerNorm) for _ in range(depth)])
