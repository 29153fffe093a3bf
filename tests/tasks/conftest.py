import pytest
import torch
from lightning.pytorch.strategies import ModelParallelStrategy
from PIL import Image

from maep_lightning.models.classifiers import create_classifier
from maep_lightning.models.preprocessing import NORMALIZATIONS, Framing, NormalizedClassifier
from maep_lightning.models.registry import create_purifier


@pytest.fixture
def fsdp(monkeypatch):
    """What configs/scale/fsdp.yaml names, for a single process."""
    for name, value in {"GLOO_SOCKET_IFNAME": "lo", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0"}.items():
        monkeypatch.setenv(name, value)
    yield lambda: ModelParallelStrategy(1, 1, save_distributed_checkpoint=False)
    torch.distributed.destroy_process_group()


@pytest.fixture
def purifier_file(tmp_path):
    """A little purifier whose weights are random, so that it changes its images."""
    torch.manual_seed(0)
    sizes = {"width": 16, "heads": 2, "decoder_width": 16, "decoder_heads": 2, "refine_depth": 2, "refine_width": 8}
    purifier = create_purifier("maep_conv_patch4_32", depth=1, **sizes)
    for parameter in purifier.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    purifier.save_pretrained(tmp_path / "purifier.safetensors")
    return str(tmp_path / "purifier.safetensors")


@pytest.fixture
def framed(tmp_path):
    """A folder of images of two classes, and a classifier of both for 32 pixels, crop_pct 0.95, bicubic."""
    for split in ("train", "val"):
        for number in range(8):
            path = tmp_path / "photos" / split / "ab"[number % 2] / f"{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (40, 44), (30 * number,) * 3).save(path)
    network = NormalizedClassifier(create_classifier("resnet8", 2), *NORMALIZATIONS["none"])
    network.framings = (Framing(32, 0.95, "bicubic"),)
    return str(tmp_path / "photos"), network.eval().requires_grad_(False)
