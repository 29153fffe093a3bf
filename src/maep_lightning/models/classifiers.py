"""Classifiers by name: networks of the CIFAR literature, timm and torchvision, and files of them."""

import difflib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import timm
import torchvision
from torch import Tensor, nn

from maep_lightning.models.layers import Normalize
from maep_lightning.models.resnet import CIFAR_MEAN, CIFAR_STD, IMAGENET_MEAN, IMAGENET_STD, CifarResNet, WideResNet
from maep_lightning.models.weights import load_state, read_weights, write_weights

_OWN: dict[str, Callable[[int], nn.Module]] = {
    "resnet8": lambda num_classes: CifarResNet(1, num_classes),
    "resnet20": lambda num_classes: CifarResNet(3, num_classes),
    "resnet32": lambda num_classes: CifarResNet(5, num_classes),
    "resnet56": lambda num_classes: CifarResNet(9, num_classes),
    "resnet110": lambda num_classes: CifarResNet(18, num_classes),
    "wrn-16-4": lambda num_classes: WideResNet(16, 4, num_classes),
    "wrn-28-10": lambda num_classes: WideResNet(28, 10, num_classes),
}


class NormalizedClassifier(nn.Module):
    """A foreign network behind the normalisation it was trained with, so that it takes images in [0, 1].

    Args:
        network: Normalised images to logits.
        mean: Per-channel mean it was trained with.
        std: Per-channel standard deviation it was trained with.
    """

    def __init__(self, network: nn.Module, mean: tuple[float, ...], std: tuple[float, ...]) -> None:
        super().__init__()
        self.normalize = Normalize(mean, std)
        self.network = network

    def forward(self, images: Tensor) -> Tensor:
        """Images `(B, 3, H, W)` in [0, 1] to logits `(B, K)`."""
        return self.network(self.normalize(images))  # type: ignore[no-any-return]


def create_classifier(name: str, num_classes: int, pretrained: bool = False) -> nn.Module:
    """Build a classifier that takes images in [0, 1]; normalisation is its first layer.

    Args:
        name: `resnet20`, `wrn-28-10` and so on, `timm:NAME` or `torchvision:NAME`.
        num_classes: Number of classes K.
        pretrained: Whether to fetch the library's weights (timm and torchvision only).

    Returns:
        The network.

    Raises:
        ValueError: If the name is unknown; the message lists the nearest ones.
    """
    library, _, model_name = name.rpartition(":")
    if library == "timm":
        network = timm.create_model(model_name, pretrained=pretrained, num_classes=num_classes)
        settings: Any = network.pretrained_cfg if pretrained else {}
        return NormalizedClassifier(network, settings.get("mean", CIFAR_MEAN), settings.get("std", CIFAR_STD))
    if library == "torchvision":
        options = {"weights": "DEFAULT"} if pretrained else {"num_classes": num_classes}
        return NormalizedClassifier(torchvision.models.get_model(model_name, **options), IMAGENET_MEAN, IMAGENET_STD)
    if name not in _OWN:
        nearest = difflib.get_close_matches(name, _OWN, n=3) or list(_OWN)
        raise ValueError(
            f"Unknown classifier {name!r}; known are {', '.join(nearest)}, timm:NAME and torchvision:NAME."
        )
    if pretrained:
        raise ValueError(f"No published weights of {name} are fetched here: train it, or give the path of a file.")
    return _OWN[name](num_classes)


def save_classifier(
    model: nn.Module, path: str | Path, name: str, num_classes: int, provenance: dict[str, Any] | None = None
) -> None:
    """Write a classifier's name and weights into one safetensors file.

    Args:
        model: What `create_classifier(name, num_classes)` built, trained.
        path: The file.
        name: The name it was created with.
        num_classes: Number of classes K.
        provenance: What made it; JSON types only.
    """
    header = {"kind": "classifier", "name": name, "num_classes": num_classes, "provenance": provenance or {}}
    write_weights(path, model.state_dict(), header)


def load_classifier(path: str | Path, name: str | None = None, num_classes: int | None = None) -> nn.Module:
    """Load a frozen classifier in evaluation mode.

    Args:
        path: A file of `save_classifier`, or a state dict of the named network.
        name: The network, needed for a file that does not say it (as in `create_classifier`).
        num_classes: Number of classes K, needed likewise.

    Returns:
        Images `(B, 3, H, W)` in [0, 1] to logits `(B, K)`, parameters frozen.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the file is corrupt, not a classifier, or does not fit the network.
    """
    state, header = read_weights(path)
    if header and header.get("kind") != "classifier":
        raise ValueError(f"{path} is a {header.get('kind')}, not a classifier.")
    name, num_classes = header.get("name", name), header.get("num_classes", num_classes)
    if name is None or num_classes is None:
        raise ValueError(f"{path} does not say what network it is: give its name (such as resnet20) and num_classes.")
    model = create_classifier(name, num_classes)
    inner = model.network if isinstance(model, NormalizedClassifier) and not header else model
    load_state(inner, state, path)
    return model.eval().requires_grad_(False)
