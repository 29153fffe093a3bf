"""Classifiers of timm and torchvision, with the normalisation, and the crop, that the library states for them."""

import difflib
from collections.abc import Iterable
from pathlib import Path
from pickle import UnpicklingError
from typing import Any
from urllib.parse import urlsplit

import timm
import torch
import torchvision

from maep_lightning.models.naming import ClassifierName
from maep_lightning.models.preprocessing import NORMALIZATIONS, Framing, NormalizedClassifier
from maep_lightning.models.weights import check_archive

LIBRARIES = ("timm", "torchvision")


def build(name: ClassifierName, num_classes: int) -> NormalizedClassifier:
    """A freshly initialised network of a library.

    Args:
        name: Its name; `library` is one of `LIBRARIES`.
        num_classes: Number of classes K.

    Returns:
        Images `(B, 3, H, W)` in [0, 1] to logits `(B, K)`.

    Raises:
        ValueError: If the library does not know the name or an option.
    """
    if name.weights:
        raise ValueError(f"@{name.weights} names weights that a library fetches, and this network gets others.")
    if name.library == "timm":
        return _timm(name, pretrained=False, num_classes=num_classes)
    _check_torchvision(name)
    try:
        network = torchvision.models.get_model(name.network, num_classes=num_classes, **name.options)
    except TypeError as error:
        raise ValueError(f"torchvision:{name.network}: {error}") from error
    return _specified(NormalizedClassifier(network, *NORMALIZATIONS["imagenet"]), name)


def fetch(name: ClassifierName) -> tuple[NormalizedClassifier, int]:
    """A network of a library with its published weights, fetched or from the library's cache.

    Args:
        name: Its name; `library` is one of `LIBRARIES`.

    Returns:
        Images `(B, 3, H, W)` in [0, 1] to logits `(B, K)`, and K.

    Raises:
        FileNotFoundError: If the weights are neither in the cache nor can be fetched.
        ValueError: If the library does not know the name, the weights or an option, or its cached file is damaged.
    """
    try:
        if name.library == "timm":
            model = _timm(name, pretrained=True)
            return model, int(model.network.num_classes)  # type: ignore[arg-type]
        return _torchvision(name)
    except OSError as error:
        raise FileNotFoundError(
            f"The weights of {name.library}:{name.network} could not be fetched ({error}). Fetch them where there is a"
            " network, or give the file as the classifier and this name as classifier_name."
        ) from error


def _timm(name: ClassifierName, pretrained: bool, **arguments: Any) -> NormalizedClassifier:
    if name.weights:
        raise ValueError(f"timm names weights after a dot, as in timm:resnet50.a1_in1k, not by @{name.weights}.")
    try:
        network = timm.create_model(name.network, pretrained=pretrained, **arguments, **name.options)
    except OSError:  # some errors of fetching are ValueErrors too
        raise
    except (RuntimeError, TypeError, ValueError) as error:
        raise ValueError(f"timm: {str(error).rstrip('.')}.{_similar_timm(name.network)}") from error
    stated: Any = network.pretrained_cfg
    size = stated["input_size"][-1] if pretrained else None
    model = NormalizedClassifier(network, stated["mean"], stated["std"], size)
    if pretrained:
        model.framings = _framings_of_timm(stated)
    return _specified(model, name)


def _framings_of_timm(stated: dict[str, Any]) -> tuple[Framing, ...]:
    """What timm states for the size of training, and for the one of its own test where that is another."""
    kinds = [kind for kind in ("", "test_") if stated.get(f"{kind}input_size")]
    crops = [stated.get(f"{kind}crop_pct") or stated["crop_pct"] for kind in kinds]
    sizes = [stated[f"{kind}input_size"][-1] for kind in kinds]
    return tuple(Framing(size, crop, stated["interpolation"]) for size, crop in zip(sizes, crops, strict=True))


def _torchvision(name: ClassifierName) -> tuple[NormalizedClassifier, int]:
    _check_torchvision(name)
    known = torchvision.models.get_model_weights(name.network)
    if name.weights not in ("", "DEFAULT", *known.__members__):
        raise ValueError(
            f"torchvision:{name.network} has no weights {name.weights}; there are {', '.join(known.__members__)}."
        )
    weights = known[name.weights or "DEFAULT"]
    preset = weights.transforms()
    cached = Path(torch.hub.get_dir(), "checkpoints", Path(urlsplit(weights.url).path).name)
    try:
        if cached.is_file():
            check_archive(cached)
        network = torchvision.models.get_model(name.network, weights=weights, **name.options)
    except TypeError as error:
        raise ValueError(f"torchvision:{name.network}: {error}") from error
    except (RuntimeError, EOFError, ValueError, UnpicklingError) as error:
        hint = f" If the file {cached} is damaged, delete it, and it is fetched again." if cached.is_file() else ""
        raise ValueError(f"torchvision:{name.network}: {error}.{hint}") from error
    size = preset.crop_size[0]
    model = NormalizedClassifier(network, preset.mean, preset.std, size)
    model.framings = (Framing(size, size / preset.resize_size[0], preset.interpolation.value),)
    return _specified(model, name, weights.name), len(weights.meta["categories"])


def _specified(model: NormalizedClassifier, name: ClassifierName, weights: str = "") -> NormalizedClassifier:
    """Note what the network was made of; torchvision takes the name of the weights for an option too."""
    model.specification = f"{name.library}:{name.network}@{weights} {sorted(name.options.items())}"
    model.packages = (name.library,)
    return model


def _check_torchvision(name: ClassifierName) -> None:
    known = torchvision.models.list_models(module=torchvision.models)
    if name.network not in known:
        raise ValueError(f"torchvision: unknown model {name.network!r}.{_similar(name.network, known)}")


def meant(text: str, libraries: Iterable[str] = LIBRARIES) -> str | None:
    """A name with its library spelt right, as `timm:resnet50` for `tim:resnet50` or `timm/resnet50`.

    Args:
        text: A name that is none.
        libraries: What may stand before the colon.

    Returns:
        The name; None where no library is near.
    """
    mark = ":" if ":" in text else "/"
    library, _, rest = text.partition(mark)
    # What stands before a slash may be any folder, so that it must be the library's name.
    close = difflib.get_close_matches(library.lower(), libraries, n=1, cutoff=0.6 if mark == ":" else 1.0)
    return f"{close[0]}:{rest}" if close and rest else None


def _similar_timm(name: str) -> str:
    """The nearest networks, or where the network is known the nearest of its weights; nothing where both are."""
    network, _, tag = name.partition(".")
    if not timm.is_model(network):
        return _similar(network, timm.list_models())
    tags = timm.list_models(f"{network}.*", pretrained=True)
    return _similar(name, tags) if tag and name not in tags else ""


def _similar(name: str, known: Iterable[str]) -> str:
    close = [match for match in difflib.get_close_matches(name, known, n=3) if match != name]
    return f" Did you mean {' or '.join(close)}?" if close else ""
