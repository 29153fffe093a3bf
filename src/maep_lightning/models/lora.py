"""Low-rank adaptation of linear layers (Hu et al. 2022), with the names of the peft library."""

import math
from collections.abc import Sequence
from typing import Literal

import torch.nn.functional as F
from torch import Tensor, nn

from maep_lightning.models.weights import whole_state

Target = Literal["qkv", "proj", "mlp"]
_SUFFIXES: dict[str, tuple[str, ...]] = {"qkv": ("attn.qkv",), "proj": ("attn.proj",), "mlp": ("mlp.fc1", "mlp.fc2")}


class LoRALinear(nn.Linear):
    """A frozen linear layer plus a trained low-rank update: `W x + b + alpha / r * B A x`.

    `B` starts at zero, so the layer at first equals the one it replaces. timm's fused `qkv` is one layer, so queries,
    keys and values share one `A`.

    Args:
        base: The layer to adapt; its weights are shared and frozen.
        rank: r, at least 1.
        alpha: Scale of the update.

    Raises:
        ValueError: If the rank is below 1.
    """

    def __init__(self, base: nn.Linear, rank: int, alpha: float) -> None:
        if rank < 1:
            raise ValueError(f"The rank of LoRA must be at least 1, not {rank}.")
        super().__init__(base.in_features, base.out_features, bias=base.bias is not None, device="meta")
        self.weight = base.weight
        self.bias = base.bias
        self.scaling = alpha / rank
        self.lora_A = nn.Parameter(base.weight.new_empty(rank, base.in_features))
        self.lora_B = nn.Parameter(base.weight.new_zeros(base.out_features, rank))
        nn.init.kaiming_uniform_(self.lora_A, a=math.sqrt(5))

    def forward(self, input: Tensor) -> Tensor:
        """`(..., in)` to `(..., out)`."""
        return super().forward(input) + self.scaling * F.linear(F.linear(input, self.lora_A), self.lora_B)

    def extra_repr(self) -> str:
        """What the fingerprint of a run tells scales of the update apart by; the rank is in the weights."""
        return f"{super().extra_repr()}, scaling={self.scaling}"


def inject_lora(
    blocks: nn.Module, rank: int, alpha: float, targets: Sequence[Target] = ("qkv", "proj", "mlp")
) -> list[nn.Parameter]:
    """Replace linear layers inside transformer blocks by `LoRALinear`, in place.

    Args:
        blocks: A module that holds timm blocks, such as `mae.decoder_blocks`.
        rank: Rank of the update.
        alpha: Scale of the update.
        targets: Which layers: `qkv`, `proj` (attention output) and `mlp` (both layers).

    Returns:
        The adapter parameters, the only ones to train.

    Raises:
        ValueError: If a target is unknown or no layer matched.
    """
    unknown = [target for target in targets if target not in _SUFFIXES]
    if unknown:
        raise ValueError(f"Unknown LoRA targets {unknown}; choose from {', '.join(_SUFFIXES)}.")
    suffixes = tuple(suffix for target in targets for suffix in _SUFFIXES[target])
    layers = [
        (name, module)
        for name, module in blocks.named_modules()
        if isinstance(module, nn.Linear) and name.endswith(suffixes)
    ]
    if not layers:
        raise ValueError(f"No layer named {', '.join(suffixes) or '(none)'} was found to adapt.")
    parameters: list[nn.Parameter] = []
    for name, module in layers:
        adapted = LoRALinear(module, rank, alpha)
        blocks.set_submodule(name, adapted)
        parameters += [adapted.lora_A, adapted.lora_B]
    return parameters


def merged_state(module: nn.Module) -> dict[str, Tensor]:
    """The weights of a module with every adapter added to the layer that it adapts.

    Args:
        module: Any module. Where FSDP has sharded it, every process must call this, as in `whole_state`.

    Returns:
        Tensors under the names that they had before `inject_lora`; the module itself is left alone.
    """
    state = whole_state(module)
    for name, layer in module.named_modules():
        if isinstance(layer, LoRALinear):
            a, b = state.pop(f"{name}.lora_A"), state.pop(f"{name}.lora_B")
            state[f"{name}.weight"] = state[f"{name}.weight"] + layer.scaling * b @ a
    return state
