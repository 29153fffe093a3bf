import pytest
import torch
from lightning.pytorch.strategies import ModelParallelStrategy


@pytest.fixture
def fsdp(monkeypatch):
    """What configs/scale/fsdp.yaml names, for a single process."""
    for name, value in {"GLOO_SOCKET_IFNAME": "lo", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0"}.items():
        monkeypatch.setenv(name, value)
    yield lambda: ModelParallelStrategy(1, 1, save_distributed_checkpoint=False)
    torch.distributed.destroy_process_group()
