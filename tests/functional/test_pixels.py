import torch

from maep_lightning.functional.pixels import unit_range


def test_unit_range__brings_bytes_to_unit_range_and_leaves_the_rest():
    found = unit_range(torch.tensor([0, 51, 255], dtype=torch.uint8))
    assert torch.equal(found, torch.tensor([0.0, 0.2, 1.0]))
    half = torch.rand(3).half()
    assert unit_range(half) is half
