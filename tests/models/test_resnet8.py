import pytest
import torch
from timm.layers import Conv2dSame
from torch import nn

from maep_lightning.models.classifiers import create_classifier
from maep_lightning.models.resnet8 import SameConv2d


@pytest.mark.oracle
@pytest.mark.parametrize(("kernel", "stride"), [(3, 1), (3, 2), (1, 2)])
@pytest.mark.parametrize("size", [(32, 32), (15, 8)])
def test_same_conv__pads_as_timm_does(kernel, stride, size):
    ours, theirs = SameConv2d(3, 5, kernel, stride), Conv2dSame(3, 5, kernel, stride)
    theirs.load_state_dict(ours.state_dict())
    images = torch.rand(2, 3, *size)
    torch.testing.assert_close(ours(images), theirs(images))


@pytest.mark.parametrize(("name", "thousands"), [("mlperf-resnet8", 77.4), ("mlperf-resnet8-wide", 480)])
def test_mlperf_resnet8__has_no_batch_norm_and_the_stated_parameters(name, thousands):
    model = create_classifier(name, 10)
    assert not any(isinstance(module, nn.BatchNorm2d) for module in model.modules())
    assert sum(p.numel() for p in model.parameters()) / 1e3 == pytest.approx(thousands, rel=0.01)
