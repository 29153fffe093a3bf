import pytest

from maep_lightning.models.naming import ClassifierName
from maep_lightning.models.preprocessing import NORMALIZATIONS, parse_normalization


def test_parse__takes_every_part():
    name = ClassifierName.parse("timm:vit_tiny_patch16_224, img_size=32, pad_type=same, norm=half, size=64")
    assert (name.library, name.network, name.weights) == ("timm", "vit_tiny_patch16_224", "")
    assert name.options == {"img_size": 32, "pad_type": "same"}
    assert (name.norm, name.size) == (NORMALIZATIONS["half"], 64)
    name = ClassifierName.parse("torchvision:resnet50@IMAGENET1K_V1")
    assert (name.library, name.network, name.weights, name.size) == ("torchvision", "resnet50", "IMAGENET1K_V1", None)
    assert ClassifierName.parse("python:package.module:factory").network == "package.module:factory"
    assert ClassifierName.parse("timm:hf_hub:owner/model").network == "hf_hub:owner/model"


def test_parse__commas_in_brackets_belong_to_a_value():
    name = ClassifierName.parse("timm:swin_tiny, num_heads=(6,6, 12,24), act={'a': [1, 2]},norm=half")
    assert name.options == {"num_heads": (6, 6, 12, 24), "act": {"a": [1, 2]}}
    assert name.norm == NORMALIZATIONS["half"]


def test_parse__options_alone_name_no_network():
    name = ClassifierName.parse("norm=imagenet")
    assert (name.library, name.network, name.norm) == ("", "", NORMALIZATIONS["imagenet"])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("resnet20,half", "'half' is no option; write NETWORK,OPTION=VALUE"),
        ("resnet20,depth=(6,half", "'half' is no option; write NETWORK,OPTION=VALUE"),
        ("resnet20,size=big", "side of an image in pixels, not 'big'"),
        ("resnet20,norm=imagnet", "Did you mean imagenet"),
        ("resnet20,norm=0.5:0.5/0.2", "one or three means"),
        ("resnet20,norm=0.5/0", "positive deviations"),
    ],
)
def test_parse__explains_mistakes(text, message):
    with pytest.raises(ValueError, match=message):
        ClassifierName.parse(text)


def test_parse_normalization__takes_numbers():
    assert parse_normalization("0.5/0.25") == ([0.5] * 3, [0.25] * 3)
    assert parse_normalization("0.5:0.4:0.3/0.2") == ([0.5, 0.4, 0.3], [0.2] * 3)
