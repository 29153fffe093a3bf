import re

import pytest
import torch
import torch.nn.functional as F
from sklearn.datasets import load_sample_image
from torch import nn

from maep_lightning.models.classifiers import create_classifier, save_classifier
from maep_lightning.models.defended import DefendedClassifier
from maep_lightning.models.lora import inject_lora
from maep_lightning.models.policies import apply_policy
from maep_lightning.models.purifier import ZOO, Purifier
from maep_lightning.models.registry import create_purifier, load_purifier

SMALL = {"width": 16, "depth": 1, "heads": 2, "decoder_width": 16, "decoder_heads": 2, "refine_width": 8}


@pytest.fixture
def purifier():
    torch.manual_seed(0)
    purifier = create_purifier("maep_conv_patch4_32", **SMALL)
    for parameter in purifier.parameters():
        nn.init.normal_(parameter, std=0.2)
    return purifier.eval()


def test_purifier__maps_the_pixel_range_into_itself_bit_for_bit_alike(purifier):
    images = torch.rand(4, 3, 32, 32)
    purified = purifier(images)
    assert purified.shape == images.shape
    assert purified.min() >= 0
    assert purified.max() <= 1
    assert torch.equal(purified, purifier(images))


def test_purifier__gradient_agrees_with_finite_differences(purifier):
    purifier = purifier.double()
    images = torch.rand(1, 3, 32, 32, dtype=torch.float64) * 0.2 + 0.4
    weight, direction = torch.randn(2, 1, 3, 32, 32, dtype=torch.float64)

    def value(x):
        return (purifier.mae(x).images * weight).sum()

    x = images.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(value(x), x)
    step = 1e-6
    numeric = (value(images + step * direction) - value(images - step * direction)) / (2 * step)
    torch.testing.assert_close((gradient * direction).sum(), numeric, rtol=1e-5, atol=1e-6)


def test_save_pretrained__one_file_rebuilds_the_purifier(purifier, tmp_path):
    purifier.save_pretrained(tmp_path / "new" / "p.safetensors", {"data": "digits"})
    again = Purifier.from_pretrained(tmp_path / "new" / "p.safetensors")
    images = torch.rand(2, 3, 32, 32)
    assert not again.training
    assert again.mae.config.to_dict() == purifier.mae.config.to_dict()
    assert torch.equal(again(images), purifier(images))
    assert [p.name for p in (tmp_path / "new").iterdir()] == ["p.safetensors"]


def test_save_pretrained__merges_lora_and_leaves_the_adapters_in_training(purifier, tmp_path):
    for parameter in inject_lora(purifier.mae.decoder_blocks, rank=2, alpha=4.0):
        nn.init.normal_(parameter, std=0.1)
    purifier.save_pretrained(tmp_path / "p.safetensors")
    again = Purifier.from_pretrained(tmp_path / "p.safetensors")
    assert not any("lora" in name for name in again.state_dict())
    assert any("lora" in name for name in purifier.state_dict())
    images = torch.rand(2, 3, 32, 32)
    torch.testing.assert_close(again(images), purifier(images), atol=1e-5, rtol=0)


def test_from_pretrained__explains_bad_files(purifier, tmp_path):
    with pytest.raises(FileNotFoundError, match="no weights file"):
        Purifier.from_pretrained(tmp_path / "none.safetensors")
    path = tmp_path / "p.safetensors"
    purifier.save_pretrained(path)
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(ValueError, match="cut short"):
        Purifier.from_pretrained(path)
    save_classifier(create_classifier("resnet8", 10), path, "resnet8", 10)
    with pytest.raises(ValueError, match="is a classifier, not a purifier"):
        Purifier.from_pretrained(path)


def test_purifier__refuses_what_is_no_batch_of_rgb_images(purifier):
    with pytest.raises(ValueError, match=r"not a tensor \(3, 32, 32\)"):
        purifier(torch.rand(3, 32, 32))


def test_defended_classifier__is_frozen_and_passes_exact_gradients(purifier):
    classifier = nn.Sequential(nn.Flatten(), nn.Linear(3072, 10))
    defended = DefendedClassifier(purifier, classifier.train())
    assert not any(module.training for module in defended.modules())
    assert not any(p.requires_grad for p in defended.parameters())
    images = torch.rand(2, 3, 32, 32, requires_grad=True)
    assert torch.equal(defended(images), classifier(purifier(images)))
    (gradient,) = torch.autograd.grad(defended(images).sum(), images)
    (expected,) = torch.autograd.grad(classifier(purifier(images)).sum(), images)
    assert torch.equal(gradient, expected)
    assert gradient.abs().sum() > 0


def test_zoo__every_shipped_purifier_loads_by_name_and_has_a_card():
    shipped = sorted(ZOO.glob("*.safetensors"))
    assert shipped
    photograph = torch.from_numpy(load_sample_image("flower.jpg").copy()).permute(2, 0, 1)[None].float() / 255
    large = F.interpolate(photograph, (224, 224), mode="area")
    small = F.interpolate(photograph, (64, 64), mode="area")[..., 16:48, 16:48]
    for path in shipped:
        card = path.with_suffix(".md").read_text()
        asked = re.search(r'load_purifier\("(?:noise:[^+]*\+)?(.+?)"\)', card)
        assert asked is not None
        assert path.stem in asked[1]
        Purifier.from_pretrained(path.stem)
        purifier = load_purifier(asked[1])  # without the noise before it, which is no part of what it learnt
        # What learnt on collages learnt of large pictures: of the detail of small ones it takes more away.
        for images, bound in ((large, 0.015), *([] if "collages" in card else [(small, 0.03)])):
            with torch.no_grad():
                purified = apply_policy(purifier, "tile")(images)
            assert purified.shape == images.shape
            assert 0 <= purified.min() < purified.max() <= 1
            if purifier.mae.config.residual:  # trained to return what it sees, save for an attack
                assert (purified - images).abs().mean() < bound


def test_zoo__a_file_of_that_name_comes_first(purifier, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    name = next(ZOO.glob("*.safetensors")).stem
    purifier.save_pretrained(tmp_path / name)
    with pytest.raises(ValueError, match=name):  # no known suffix, so it is not taken for the shipped one
        Purifier.from_pretrained(name)
