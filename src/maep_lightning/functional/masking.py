"""Random masking of patch tokens, with the names and the convention of facebookresearch/mae."""

import torch
from torch import Tensor


def random_masking(tokens: Tensor, mask_ratio: float, noise: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
    """Keep a random subset of the tokens of each sample.

    At `mask_ratio` 0 the shuffle is bypassed, so that the output is the input, bit for bit, and no random number is
    drawn: a purifier at inference is deterministic.

    Args:
        tokens: `(B, L, D)`.
        mask_ratio: Share of the tokens that is removed, in [0, 1); `int(L * (1 - mask_ratio))` are kept.
        noise: `(B, L)`; the tokens with the smallest values are kept. Drawn from torch's global generator if None.

    Returns:
        The kept tokens `(B, L_kept, D)` in shuffled order, the mask `(B, L)` with 0 for kept and 1 for removed, and
        `ids_restore` `(B, L)` that undoes the shuffle.

    Raises:
        ValueError: If `mask_ratio` is outside [0, 1) or leaves no token.
    """
    b, length, d = tokens.shape
    kept = int(length * (1 - mask_ratio))
    if not 0 <= mask_ratio < 1 or kept == 0:
        raise ValueError(f"mask_ratio must be in [0, 1) and leave at least one of {length} patches; got {mask_ratio}.")
    if mask_ratio == 0:
        ids = torch.arange(length, device=tokens.device).expand(b, length)
        return tokens, torch.zeros(b, length, device=tokens.device), ids
    if noise is None:
        noise = torch.rand(b, length, device=tokens.device)
    ids_shuffle = noise.argsort(dim=1)
    ids_restore = ids_shuffle.argsort(dim=1)
    x_kept = tokens.gather(1, ids_shuffle[:, :kept, None].expand(-1, -1, d))
    mask = (ids_restore >= kept).float()
    return x_kept, mask, ids_restore
