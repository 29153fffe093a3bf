"""The residual networks of the CIFAR literature: ResNet-20 to 110 and WRN-28-10."""

from collections import OrderedDict

import torch.nn.functional as F
from torch import Tensor, nn

from maep_lightning.models.layers import Normalize
from maep_lightning.models.preprocessing import NORMALIZATIONS

IMAGENET_MEAN, IMAGENET_STD = NORMALIZATIONS["imagenet"]


class BasicBlock(nn.Module):
    """Two 3x3 convolutions with a parameter-free shortcut (option A of He et al. 2016).

    Args:
        channels_in: Channels of the input.
        channels: Channels of the output.
        stride: Stride of the first convolution.
    """

    def __init__(self, channels_in: int, channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels_in, channels, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.stride = stride
        self.padding = (channels - channels_in) // 2

    def forward(self, x: Tensor) -> Tensor:
        """`(B, C_in, H, W)` to `(B, C, H/stride, W/stride)`."""
        shortcut = x
        if self.stride > 1 or self.padding:
            shortcut = F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, self.padding, self.padding))
        x = F.relu(self.bn1(self.conv1(x)))
        return F.relu(self.bn2(self.conv2(x)) + shortcut)


class CifarResNet(nn.Module):
    """ResNet for 32x32 images (He et al. 2016, section 4.2), 6 n + 2 layers, widths 16, 32 and 64.

    Parameter names are those of https://github.com/akamaster/pytorch_resnet_cifar10, whose weights load as they are.

    Args:
        blocks: Blocks a stage, n.
        num_classes: Number of classes K.
    """

    def __init__(self, blocks: int, num_classes: int) -> None:
        super().__init__()
        self.normalize = Normalize(IMAGENET_MEAN, IMAGENET_STD)
        self.conv1 = nn.Conv2d(3, 16, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        stages = []
        channels = 16
        for width, stride in ((16, 1), (32, 2), (64, 2)):
            stage = []
            for index in range(blocks):
                stage.append(BasicBlock(channels, width, stride if index == 0 else 1))
                channels = width
            stages.append(nn.Sequential(*stage))
        self.layer1, self.layer2, self.layer3 = stages
        self.linear = nn.Linear(64, num_classes)
        for module in self.modules():
            if isinstance(module, (nn.Conv2d, nn.Linear)):
                nn.init.kaiming_normal_(module.weight)

    def forward(self, images: Tensor) -> Tensor:
        """Images `(B, 3, 32, 32)` in [0, 1] to logits `(B, K)`."""
        x = F.relu(self.bn1(self.conv1(self.normalize(images))))
        x = self.layer3(self.layer2(self.layer1(x)))
        return self.linear(x.mean(dim=(2, 3)))  # type: ignore[no-any-return]


class WideBlock(nn.Module):
    """Pre-activation block of a wide residual network.

    Args:
        channels_in: Channels of the input.
        channels: Channels of the output.
        stride: Stride of the first convolution.
    """

    def __init__(self, channels_in: int, channels: int, stride: int) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(channels_in)
        self.conv1 = nn.Conv2d(channels_in, channels, 3, stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        changes = stride > 1 or channels_in != channels
        self.convShortcut = nn.Conv2d(channels_in, channels, 1, stride, bias=False) if changes else None

    def forward(self, x: Tensor) -> Tensor:
        """`(B, C_in, H, W)` to `(B, C, H/stride, W/stride)`."""
        active = F.relu(self.bn1(x))
        shortcut = x if self.convShortcut is None else self.convShortcut(active)
        return self.conv2(F.relu(self.bn2(self.conv1(active)))) + shortcut  # type: ignore[no-any-return]


class WideResNet(nn.Module):
    """Wide residual network for 32x32 images (Zagoruyko and Komodakis 2016), without dropout.

    Parameter names are those of https://github.com/xternalz/WideResNet-pytorch and https://github.com/RobustBench.

    Args:
        depth: Number of layers, 6 n + 4.
        widen: Width factor.
        num_classes: Number of classes K.
    """

    def __init__(self, depth: int, widen: int, num_classes: int) -> None:
        super().__init__()
        self.normalize = Normalize(*NORMALIZATIONS["cifar10"])
        self.conv1 = nn.Conv2d(3, 16, 3, padding=1, bias=False)
        stages = []
        channels = 16
        for width, stride in ((16 * widen, 1), (32 * widen, 2), (64 * widen, 2)):
            blocks = []
            for index in range((depth - 4) // 6):
                blocks.append(WideBlock(channels, width, stride if index == 0 else 1))
                channels = width
            stages.append(nn.Sequential(OrderedDict(layer=nn.Sequential(*blocks))))
        self.block1, self.block2, self.block3 = stages
        self.bn1 = nn.BatchNorm2d(channels)
        self.fc = nn.Linear(channels, num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, images: Tensor) -> Tensor:
        """Images `(B, 3, 32, 32)` in [0, 1] to logits `(B, K)`."""
        x = self.block3(self.block2(self.block1(self.conv1(self.normalize(images)))))
        return self.fc(F.relu(self.bn1(x)).mean(dim=(2, 3)))  # type: ignore[no-any-return]
