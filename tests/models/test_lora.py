import copy

import pytest
import torch
from timm.models.vision_transformer import Block
from torch import nn

from maep_lightning.models.lora import LoRALinear, inject_lora, merged_state


@pytest.fixture
def blocks():
    torch.manual_seed(0)
    return nn.Sequential(Block(16, 2, qkv_bias=True), Block(16, 2, qkv_bias=True))


@pytest.mark.oracle
def test_inject_lora__equals_peft(blocks):
    peft = pytest.importorskip("peft")
    reference = copy.deepcopy(blocks)
    config = peft.LoraConfig(r=3, lora_alpha=7, target_modules=["qkv", "attn.proj", "fc1", "fc2"])
    peft.inject_adapter_in_model(config, reference)
    inject_lora(blocks, rank=3, alpha=7.0)
    theirs = {name.replace(".default.weight", ""): p for name, p in reference.named_parameters() if "lora" in name}
    ours = {name: p for name, p in blocks.named_parameters() if "lora" in name}
    assert theirs.keys() == ours.keys()
    for name, parameter in ours.items():
        value = torch.randn(parameter.shape) * 0.1
        parameter.data.copy_(value)
        theirs[name].data.copy_(value)
    x = torch.rand(2, 5, 16)
    torch.testing.assert_close(blocks(x), reference(x), atol=1e-6, rtol=1e-5)


@pytest.mark.oracle
def test_inject_lora__trains_as_peft_does_from_the_same_seed(blocks):
    peft = pytest.importorskip("peft")
    reference = copy.deepcopy(blocks)
    peft.inject_adapter_in_model(peft.LoraConfig(r=3, lora_alpha=7, target_modules=["0.attn.proj"]), reference)
    blocks.requires_grad_(False)
    torch.manual_seed(1)
    inject_lora(blocks[0], rank=3, alpha=7.0, targets=["proj"])
    torch.manual_seed(1)
    theirs = reference[0].attn.proj
    theirs.reset_lora_parameters("default", init_lora_weights=True)
    ours = blocks[0].attn.proj
    assert torch.equal(ours.lora_A, theirs.lora_A["default"].weight)
    x = torch.rand(2, 5, 16)
    for network, layer in ((blocks, ours), (reference, theirs)):
        trained = [p for p in layer.parameters() if p.requires_grad]
        optimizer = torch.optim.SGD(trained, 0.1)
        for _ in range(3):
            optimizer.zero_grad()
            network(x).square().mean().backward()
            optimizer.step()
    update = ours.scaling * ours.lora_B @ ours.lora_A
    assert update.abs().max() > 1e-4
    torch.testing.assert_close(update, theirs.get_delta_weight("default"), atol=1e-7, rtol=1e-4)


def test_inject_lora__changes_nothing_at_first_and_trains_adapters_alone(blocks):
    x = torch.rand(2, 5, 16)
    before = blocks(x)
    blocks.requires_grad_(False)
    parameters = inject_lora(blocks, rank=2, alpha=4.0)
    assert torch.equal(blocks(x), before)
    assert {id(p) for p in blocks.parameters() if p.requires_grad} == {id(p) for p in parameters}
    frozen = {name: p.clone() for name, p in blocks.named_parameters() if not p.requires_grad}
    optimizer = torch.optim.SGD(blocks.parameters(), 1.0)
    for _ in range(2):
        blocks(x).square().sum().backward()
        optimizer.step()
    assert all(torch.equal(p, frozen[name]) for name, p in blocks.named_parameters() if name in frozen)
    assert not torch.equal(blocks(x), before)


@pytest.mark.parametrize(
    ("targets", "expected"),
    [(["qkv"], {"attn.qkv"}), (["proj"], {"attn.proj"}), (["mlp", "qkv"], {"attn.qkv", "mlp.fc1", "mlp.fc2"})],
)
def test_inject_lora__adapts_the_layers_asked_for(blocks, targets, expected):
    inject_lora(blocks, 2, 2.0, targets)
    adapted = {name[2:] for name, module in blocks.named_modules() if isinstance(module, LoRALinear)}
    assert adapted == expected


def test_merged_state__is_the_adapted_network_under_its_old_names(blocks):
    plain = copy.deepcopy(blocks)
    for parameter in inject_lora(blocks, 2, 4.0):
        nn.init.normal_(parameter, std=0.3)
    plain.load_state_dict(merged_state(blocks))
    x = torch.rand(2, 5, 16)
    torch.testing.assert_close(plain(x), blocks(x), atol=1e-5, rtol=1e-5)


def test_inject_lora__explains_mistakes(blocks):
    with pytest.raises(ValueError, match="rank of LoRA must be at least 1"):
        inject_lora(blocks, 0, 1.0)
    with pytest.raises(ValueError, match=r"Unknown LoRA targets \['key'\]"):
        inject_lora(blocks, 1, 1.0, ["key"])
    with pytest.raises(ValueError, match="No layer"):
        inject_lora(nn.Sequential(nn.Linear(2, 2)), 1, 1.0)
