"""Low-rank adaptation of linear layers (Hu et al. 2022), with the names of the peft library."""

import copy
import math
from collections.abc import Sequence
from typing import Literal, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Target = Literal["qkv", "proj", "mlp"]
_SUFFIXES: dict[str, tuple[str, ...]] = {"qkv": ("attn.qkv",), "proj": ("attn.proj",), "mlp": ("mlp.fc1", "mlp.fc2")}
ModuleT = TypeVar("ModuleT", bound=nn.Module)


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

    def merged(self) -> nn.Linear:
        """An ordinary layer with the update added to its weight."""
        with torch.no_grad():
            linear = nn.Linear(self.in_features, self.out_features, bias=self.bias is not None, device="meta")
            linear.weight = nn.Parameter(self.weight + self.scaling * self.lora_B @ self.lora_A)
            linear.bias = self.bias
        return linear


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


def merge_lora(module: ModuleT) -> ModuleT:
    """A copy of a module in which every `LoRALinear` is an ordinary layer; the module itself is left alone.

    Args:
        module: Any module.

    Returns:
        The merged copy, with the parameter names it had before `inject_lora`.
    """
    merged = copy.deepcopy(module)
    adapted = [(name, layer) for name, layer in merged.named_modules() if isinstance(layer, LoRALinear)]
    for name, layer in adapted:
        merged.set_submodule(name, layer.merged())
    return merged
