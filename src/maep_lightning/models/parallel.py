"""What training a large masked autoencoder needs: sharding over processes, and less memory for activations."""

from timm.models.vision_transformer import Block
from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, fully_shard

from maep_lightning.models.mae import MaskedAutoencoder


def checkpoint_gradients(module: nn.Module) -> None:
    """Switch gradient checkpointing on in every masked autoencoder inside a module.

    Raises:
        ValueError: If there is none.
    """
    for mae in _autoencoders(module):
        mae.gradient_checkpointing = True


def shard(module: nn.Module, mesh: DeviceMesh) -> None:
    """Shard every masked autoencoder inside a module over processes, in place (FSDP2), block by block.

    Parameters become `DTensor`s of which each process holds its part; a block is gathered only while it computes. What
    is sharded already stays as it is.

    Args:
        module: What holds the networks, with the same weights on every process.
        mesh: The processes, in one dimension.

    Raises:
        ValueError: If there is no masked autoencoder.
    """
    for mae in _autoencoders(module):
        if not isinstance(mae, FSDPModule):
            for block in mae.modules():
                if isinstance(block, Block):
                    fully_shard(block, mesh=mesh)
            fully_shard(mae, mesh=mesh)


def _autoencoders(module: nn.Module) -> list[MaskedAutoencoder]:
    found = [layer for layer in module.modules() if isinstance(layer, MaskedAutoencoder)]
    if not found:
        raise ValueError(
            f"{type(module).__name__} holds no masked autoencoder; FSDP and gradient checkpointing are for its blocks. "
            "Train with --trainer.strategy ddp, and without optimization.gradient_checkpointing."
        )
    return found
