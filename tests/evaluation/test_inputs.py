import pytest
import torch

from maep_lightning.attacks.target import Target
from maep_lightning.evaluation import inputs


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float16, torch.float64])
def test_preflight__converts_a_few_images_and_not_the_whole_set(linear, monkeypatch, dtype):
    classifier, purifier, images, labels = linear.build(20)
    images = (images * 255).to(dtype) if dtype == torch.uint8 else images.to(dtype)
    converted, pixels = [], inputs.pixels

    def noted(images, device):
        converted.append(len(images))
        return pixels(images, device)

    monkeypatch.setattr(inputs, "pixels", noted)
    bare, defended = Target(classifier), Target(purifier, classifier)
    assert inputs.preflight(bare, defended, None, images, labels, linear.plan(8), torch.device("cpu")) == ()
    assert max(converted) <= 8
