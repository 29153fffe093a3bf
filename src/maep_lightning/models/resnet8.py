"""The ResNet-8 of the MLPerf Tiny benchmark, as its TensorFlow Lite files hold it."""

import torch.nn.functional as F
from torch import Tensor, nn

from maep_lightning.models.layers import Normalize
from maep_lightning.models.preprocessing import NORMALIZATIONS


class SameConv2d(nn.Conv2d):
    """A convolution with TensorFlow's padding SAME: where it cannot be even, right and bottom get the odd pixel.

    Args:
        channels_in: Channels of the input.
        channels: Channels of the output.
        kernel_size: Side of the kernel.
        stride: Stride in both directions.
    """

    def __init__(self, channels_in: int, channels: int, kernel_size: int, stride: int = 1) -> None:
        super().__init__(channels_in, channels, kernel_size, stride)

    def forward(self, input: Tensor) -> Tensor:
        """`(B, C_in, H, W)` to `(B, C, ceil(H/stride), ceil(W/stride))`."""
        padding: list[int] = []
        for side in (input.shape[-1], input.shape[-2]):
            stride, kernel = self.stride[0], self.kernel_size[0]
            total = max(0, (-(-side // stride) - 1) * stride + kernel - side)
            padding += [total // 2, total - total // 2]
        return super().forward(F.pad(input, padding))


class FoldedBlock(nn.Module):
    """Two 3x3 convolutions, their BatchNorm folded into them, and a 1x1 convolution where the shape changes.

    Args:
        channels_in: Channels of the input.
        channels: Channels of the output.
        stride: Stride of the first convolution.
    """

    def __init__(self, channels_in: int, channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = SameConv2d(channels_in, channels, 3, stride)
        self.conv2 = SameConv2d(channels, channels, 3)
        changes = stride > 1 or channels_in != channels
        self.down = SameConv2d(channels_in, channels, 1, stride) if changes else None

    def forward(self, x: Tensor) -> Tensor:
        """`(B, C_in, H, W)` to `(B, C, H/stride, W/stride)`."""
        shortcut = x if self.down is None else self.down(x)
        return F.relu(self.conv2(F.relu(self.conv1(x))) + shortcut)


class MLPerfResNet8(nn.Module):
    """ResNet-8 of https://github.com/mlcommons/tiny (image classification), without BatchNorm and normalisation.

    Args:
        width: Channels of the first stage; 16 in the benchmark.
        num_classes: Number of classes K.
    """

    def __init__(self, width: int, num_classes: int) -> None:
        super().__init__()
        self.normalize = Normalize(*NORMALIZATIONS["none"])
        self.stem = SameConv2d(3, width, 3)
        self.blocks = nn.Sequential(
            FoldedBlock(width, width, 1), FoldedBlock(width, 2 * width, 2), FoldedBlock(2 * width, 4 * width, 2)
        )
        self.fc = nn.Linear(4 * width, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        """Images `(B, 3, 32, 32)` in [0, 1] to logits `(B, K)`."""
        x = self.blocks(F.relu(self.stem(self.normalize(images))))
        return self.fc(x.mean(dim=(2, 3)))  # type: ignore[no-any-return]
