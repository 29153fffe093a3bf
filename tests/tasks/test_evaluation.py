import pytest
import torch

from maep_lightning.models.purifier import Purifier
from maep_lightning.tasks import PurifierEvaluation

NAME = "maep_conv_patch4_32_cifar10"


def test_predict__purifies_under_the_policy():
    images = torch.rand(2, 3, 32, 64)
    purifier = Purifier.from_pretrained(NAME)
    with torch.no_grad():
        purified = PurifierEvaluation(purifier=NAME, policy="tile").predict_step([images, ["a", "b"]], 0)
        expected = torch.cat([purifier(half) for half in images.split(32, dim=3)], dim=3)
    torch.testing.assert_close(purified, expected, rtol=0, atol=1e-5)


def test_policy__needs_a_purifier():
    with pytest.raises(ValueError, match="policy tile serves a purifier"):
        PurifierEvaluation(classifier="classifier.safetensors", policy="tile")
