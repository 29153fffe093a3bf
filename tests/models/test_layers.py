import pytest
import torch
from torch import nn

from maep_lightning.models.layers import outputs_of


def test_outputs_of__are_those_of_the_last_run_and_carry_gradients():
    network = nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 1))
    first, images = torch.rand(4, 2), torch.rand(4, 2, requires_grad=True)
    with outputs_of(network, ["1", "0"]) as outputs:
        network(first)
        network(images)
    assert torch.equal(outputs["0"], network[0](images))
    assert torch.equal(outputs["1"], network[:2](images))
    assert torch.autograd.grad(outputs["1"].sum(), images)[0].abs().sum() > 0


def test_outputs_of__looks_no_longer_than_asked():
    network = nn.Sequential(nn.Linear(2, 3))
    with pytest.raises(RuntimeError), outputs_of(network, ["0"]) as outputs:  # noqa: PT012
        network(torch.rand(1, 2))
        network(torch.rand(1, 5))
    seen = outputs["0"]
    network(torch.rand(1, 2))
    assert outputs["0"] is seen


def test_outputs_of__names_layers_that_exist():
    dense = nn.ModuleDict({"features": nn.ReLU()})
    with pytest.raises(ValueError, match="no layer 'feature'; did you mean features"), outputs_of(dense, ["feature"]):
        pass


def test_outputs_of__are_tensors():
    attention = nn.MultiheadAttention(2, 1)
    with (
        pytest.raises(ValueError, match="Layer '0' returns a tuple, not a tensor"),
        outputs_of(nn.ModuleList([attention]), ["0"]),
    ):
        attention(*[torch.rand(1, 1, 2)] * 3)
