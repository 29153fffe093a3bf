import pytest
import torch
from torch import nn

from maep_lightning.models.classifiers import create_classifier, load_classifier, save_classifier


@pytest.mark.parametrize(("name", "millions"), [("resnet20", 0.27), ("resnet56", 0.85), ("wrn-28-10", 36.5)])
def test_create_classifier__has_the_published_number_of_parameters(name, millions):
    # He et al. 2016 table 6; Zagoruyko and Komodakis 2016 table 4
    model = create_classifier(name, 10)
    assert sum(p.numel() for p in model.parameters()) / 1e6 == pytest.approx(millions, abs=0.01 * max(1, millions))


@pytest.mark.parametrize("name", ["resnet8", "wrn-16-4", "timm:resnet10t", "torchvision:squeezenet1_1"])
def test_create_classifier__takes_unit_range_images(name):
    model = create_classifier(name, 7).eval()
    first = next(module for module in model.modules() if not list(module.children()))
    assert type(first).__name__ == "Normalize"
    assert model(torch.rand(2, 3, 32, 32)).shape == (2, 7)


def test_resnet20__loads_the_names_of_the_public_weights():
    names = set(create_classifier("resnet20", 10).state_dict())
    assert {"conv1.weight", "bn1.running_mean", "layer3.2.conv2.weight", "layer2.0.bn1.bias", "linear.bias"} <= names
    assert len(names) == 19 * 6 + 2  # 19 convolutions with a BatchNorm of five tensors each, and the linear layer


def test_save_and_load__one_file_says_what_it_is(tmp_path):
    model = create_classifier("resnet8", 4).eval()
    save_classifier(model, tmp_path / "c.safetensors", "resnet8", 4)
    again = load_classifier(tmp_path / "c.safetensors")
    images = torch.rand(2, 3, 32, 32)
    assert torch.equal(again(images), model(images))
    assert not again.training
    assert not any(p.requires_grad for p in again.parameters())


def test_load_classifier__takes_a_foreign_state_dict_by_name(tmp_path):
    model = create_classifier("resnet8", 10).eval()
    torch.save({"state_dict": model.state_dict()}, tmp_path / "weights.pth")
    again = load_classifier(tmp_path / "weights.pth", "resnet8", 10)
    images = torch.rand(2, 3, 32, 32)
    assert torch.equal(again(images), model(images))


def test_load_classifier__explains_bad_files(tmp_path):
    path = tmp_path / "weights.pth"
    torch.save(create_classifier("resnet8", 10).state_dict(), path)
    with pytest.raises(ValueError, match="give its name"):
        load_classifier(path)
    with pytest.raises(ValueError, match="does not fit CifarResNet"):
        load_classifier(path, "resnet20", 10)
    torch.save(nn.Linear(2, 2), path)
    with pytest.raises(ValueError, match="Only state dicts of tensors are loaded"):
        load_classifier(path, "resnet8", 10)
    path.write_bytes(b"not a file of weights")
    with pytest.raises(ValueError, match=r"weights\.pth"):
        load_classifier(path, "resnet8", 10)


def test_create_classifier__suggests_names():
    with pytest.raises(ValueError, match="resnet20"):
        create_classifier("resnet21", 10)
