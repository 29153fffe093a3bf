"""VGG for 32x32 images."""

from torch import Tensor, nn
from torchvision.models.vgg import cfgs, make_layers

from maep_lightning.models.layers import Normalize
from maep_lightning.models.preprocessing import NORMALIZATIONS


class CifarVGG16(nn.Module):
    """VGG-16 with BatchNorm (Simonyan and Zisserman 2015, configuration D) for 32x32 images, 512 wide at its end.

    Parameter names are those of https://github.com/chenyaofo/pytorch-cifar-models, whose weights load as they are.

    Args:
        num_classes: Number of classes K.
    """

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.normalize = Normalize(*NORMALIZATIONS["cifar10-per-image"])
        self.features = make_layers(cfgs["D"], batch_norm=True)
        hidden = [nn.Linear(512, 512), nn.ReLU(), nn.Dropout(), nn.Linear(512, 512), nn.ReLU(), nn.Dropout()]
        self.classifier = nn.Sequential(*hidden, nn.Linear(512, num_classes))
        for module in self.features.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, images: Tensor) -> Tensor:
        """Images `(B, 3, 32, 32)` in [0, 1] to logits `(B, K)`."""
        return self.classifier(self.features(self.normalize(images)).flatten(1))  # type: ignore[no-any-return]
