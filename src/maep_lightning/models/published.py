"""Public files of trained classifiers that are known by their names."""

from typing import NamedTuple


class Published(NamedTuple):
    """What a public file of weights holds.

    Attributes:
        name: The network, as in `create_classifier`.
        num_classes: Number of classes K.
        source: Where it comes from, and its licence.
    """

    name: str
    num_classes: int
    source: str


_AKAMASTER = "https://github.com/akamaster/pytorch_resnet_cifar10, BSD-2-Clause"
_MLPERF = "https://github.com/mlcommons/tiny, Apache-2.0"

PUBLISHED: dict[str, Published] = {
    "cifar10_akamaster_resnet20": Published("resnet20", 10, _AKAMASTER),
    "cifar10_akamaster_resnet32": Published("resnet32", 10, _AKAMASTER),
    "cifar10_akamaster_resnet56": Published("resnet56", 10, _AKAMASTER),
    "cifar10_mlperftiny_resnet8": Published("mlperf-resnet8", 10, _MLPERF),
    "cifar10_mlperftiny_resnet8_wide480k": Published("mlperf-resnet8-wide", 10, _MLPERF),
    "imagenet_mobilenetv2_100_tf_qat_timm_padsame": Published(
        "timm:mobilenetv2_100,pad_type=same,norm=half", 1000, "https://github.com/google-coral/test_data, Apache-2.0"
    ),
    "imagenet_squeezenet1_0_songhan_deepcompression": Published(
        "torchvision:squeezenet1_0", 1000, "https://github.com/songhan/SqueezeNet-Deep-Compression, BSD"
    ),
}
"""By the stem of the file's name."""
