"""Classifiers by name: networks of the CIFAR literature, timm, torchvision and one's own, and files of them."""

import difflib
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from maep_lightning.models.layers import Normalize
from maep_lightning.models.libraries import LIBRARIES, build, fetch, meant
from maep_lightning.models.naming import ClassifierName
from maep_lightning.models.preprocessing import (
    NORMALIZATIONS,
    NormalizedClassifier,
    ResizedClassifier,
    normalization_of,
    normalization_text,
    unwrap,
)
from maep_lightning.models.programs import import_network, is_program, load_program
from maep_lightning.models.published import PUBLISHED
from maep_lightning.models.resnet import CifarResNet, WideResNet
from maep_lightning.models.resnet8 import MLPerfResNet8
from maep_lightning.models.vgg import CifarVGG16
from maep_lightning.models.weights import load_state, read_weights, strip_prefix, write_weights

_OWN: dict[str, Callable[[int], nn.Module]] = {
    "resnet8": lambda num_classes: CifarResNet(1, num_classes),
    "resnet20": lambda num_classes: CifarResNet(3, num_classes),
    "resnet32": lambda num_classes: CifarResNet(5, num_classes),
    "resnet56": lambda num_classes: CifarResNet(9, num_classes),
    "resnet110": lambda num_classes: CifarResNet(18, num_classes),
    "wrn-16-4": lambda num_classes: WideResNet(16, 4, num_classes),
    "wrn-28-10": lambda num_classes: WideResNet(28, 10, num_classes),
    "vgg16-bn": CifarVGG16,
    "mlperf-resnet8": lambda num_classes: MLPerfResNet8(16, num_classes),
    "mlperf-resnet8-wide": lambda num_classes: MLPerfResNet8(40, num_classes),
}
_SUFFIXES = ("", ".safetensors", ".pth", ".pt", ".pt2")


def create_classifier(name: str, num_classes: int) -> nn.Module:
    """Build a classifier that takes images in [0, 1]; normalisation is its first layer.

    Args:
        name: `NETWORK[,OPTION=VALUE...]`, with a network `resnet20`, `wrn-28-10` and so on, `timm:NAME` or
            `torchvision:NAME`. The option `norm` names the normalisation (a key of `NORMALIZATIONS`, or `MEAN/STD`)
            where it is not the network's own, `size` what images are resized to first; others go to the library, as in
            `timm:vit_tiny_patch16_224,img_size=32,patch_size=4`.
        num_classes: Number of classes K.

    Returns:
        The network, freshly initialised.

    Raises:
        ValueError: If a name or an option is unknown; the message lists the nearest ones.
    """
    parts = ClassifierName.parse(name)
    if parts.library in LIBRARIES:
        return _prepare(build(parts, num_classes), parts)
    if parts.library or parts.network not in _OWN:
        nearest = difflib.get_close_matches(parts.network, _OWN, n=3) or list(_OWN)
        hint = f" Did you mean {close}?" if (close := meant(name)) else ""
        raise ValueError(
            f"Unknown classifier {name!r}; known are {', '.join(nearest)}, timm:NAME and torchvision:NAME.{hint}"
        )
    if parts.options or parts.weights:
        raise ValueError(f"{name!r}: {parts.network} has the options norm and size, and no published weights.")
    return _prepare(_OWN[parts.network](num_classes), parts)


def save_classifier(
    model: nn.Module, path: str | Path, name: str, num_classes: int, provenance: dict[str, Any] | None = None
) -> None:
    """Write a classifier's name, normalisation and weights into one safetensors file.

    Args:
        model: What `create_classifier(name, num_classes)` built, trained.
        path: The file.
        name: The name it was created with.
        num_classes: Number of classes K.
        provenance: What made it; JSON types only.
    """
    header = {"kind": "classifier", "name": name, "num_classes": num_classes, "provenance": provenance or {}}
    if (layer := normalization_of(model)) is not None:
        header["norm"] = normalization_text(layer)
    write_weights(path, model.state_dict(), header)


def load_classifier(source: str | Path, name: str | None = None, num_classes: int | None = None) -> nn.Module:
    """Load a frozen classifier in evaluation mode.

    Args:
        source: One of

            - a file of `save_classifier`, of a state dict, or of a TorchScript or exported program;
            - the name of such a file in the folder `weights` of `MAEP_DATA_DIR`, with or without its suffix;
            - `timm:NAME` or `torchvision:NAME@WEIGHTS`, whose weights the library fetches;
            - `python:PACKAGE.MODULE:FACTORY`, see `import_network`.

            What is no file may end in options, as in `create_classifier`.
        name: The network, needed for a state dict that is not known by its file's name (as in `create_classifier`).
            For what says itself what it is, and for a program, just options: `norm` and `size` take the place of its
            own.
        num_classes: Number of classes K, needed likewise; what says its own K must say the same one.

    Returns:
        Images `(B, 3, H, W)` in [0, 1] to logits `(B, K)`, parameters frozen.

    Raises:
        FileNotFoundError: If there is no such file, or the library cannot fetch its weights.
        ValueError: If the file is corrupt, not a classifier, or does not fit the network or K; if `name` is another
            network than the source says, or has options that cannot be used; if a file's name is given options.
    """
    path = find_weights(source)
    asked = ClassifierName.parse(name or "")
    if path is None:
        model = _fetch(str(source), asked, num_classes)
    elif is_program(path):
        _check_name(path, asked, ClassifierName.parse(""))
        model = load_program(path)
    else:
        model = _from_state(path, name or "", num_classes)
    return _prepare(model, asked).eval().requires_grad_(False)


def find_weights(source: str | Path) -> Path | None:
    """The file that is meant: at that path, or of that name in the folder `weights` of `MAEP_DATA_DIR`.

    Args:
        source: A path, or the name of a file with or without its suffix.

    Returns:
        The file; None if there is none.
    """
    candidates = [Path(source), *(_weights_folder() / f"{source}{suffix}" for suffix in _SUFFIXES)]
    return next((path for path in candidates if path.is_file()), None)


def _weights_folder() -> Path:
    return Path(os.environ.get("MAEP_DATA_DIR") or "data").expanduser() / "weights"


def _fetch(source: str, asked: ClassifierName, num_classes: int | None) -> nn.Module:
    """A classifier that is no file of ours: a library's, or one by import path."""
    parts = ClassifierName.parse(source)
    if parts.library in (*LIBRARIES, "python"):
        _check_name(source, asked, parts)
    if parts.library in LIBRARIES:
        model, classes = fetch(parts)
        _check_classes(source, classes, num_classes)
        return _prepare(model, parts)
    if parts.library == "python":
        return _prepare(import_network(parts.network, parts.options), parts)
    head, comma, options = (part.strip() for part in source.partition(","))
    if comma and (find_weights(head) is not None or Path(head).stem in PUBLISHED):
        raise ValueError(
            f"{source} is no file: options of a file go into classifier_name (in a transfer study: name). Give {head}"
            f" as the classifier, and {options or 'its options'} there."
        )
    folder = _weights_folder()
    if (known := PUBLISHED.get(Path(source).stem)) is not None:
        raise FileNotFoundError(
            f"There is no weights file {source}. To be found by its name, this public file must lie in {folder}:"
            f" weights/ of the data folder, which MAEP_DATA_DIR names. It comes from {known.source}."
        )
    # Of the very name, but of another suffix than a name may go without: the whole name is what was meant.
    here = {path.stem: path.name for path in sorted(folder.glob("*.*"))}
    library = meant(source, (*LIBRARIES, "python"))
    near = difflib.get_close_matches(source, {*here, *PUBLISHED}, n=3)
    close = [library] if library else [here.get(name, name) for name in near]
    hint = f" Did you mean {' or '.join(close)}?" if close else ""
    raise FileNotFoundError(
        f"There is no weights file {source}, and none of that name in {folder}.{hint} Train it first, or correct the"
        " path; timm:NAME, torchvision:NAME and python:MODULE:FACTORY need no file."
    )


def _from_state(path: Path, name: str, num_classes: int | None) -> nn.Module:
    """A classifier from a file of tensors."""
    state, header = read_weights(path)
    if header and header.get("kind") != "classifier":
        raise ValueError(f"{path} is a {header.get('kind')}, not a classifier.")
    asked, own, classes = ClassifierName.parse(name), name, num_classes
    if header:
        own, classes = _recorded_name(header), header["num_classes"]
    elif not asked.network and (known := PUBLISHED.get(path.stem)) is not None:
        own, classes = known.name, known.num_classes
    parts = ClassifierName.parse(own)
    if not parts.network or classes is None:
        raise ValueError(f"{path} does not say what network it is: give its name (such as resnet20) and num_classes.")
    _check_name(path, asked, parts)
    _check_classes(path, classes, num_classes)
    model = create_classifier(own, classes)
    if header:
        load_state(model, state, path)
    else:
        network = unwrap(model)
        layer = normalization_of(model) if asked.norm is None else Normalize(*asked.norm)
        state = _without_normalization(state, network, layer or Normalize(*NORMALIZATIONS["none"]), path)
        load_state(network, strip_prefix(network, state), path)
    return model


def _without_normalization(
    state: dict[str, Tensor], network: nn.Module, layer: Normalize, path: Path
) -> dict[str, Tensor]:
    """A state without the mean and the deviation that some authors keep in it, if they are those of `layer`."""
    own = tuple(network.state_dict())
    beside = {name: value.flatten() for name, value in state.items() if value.numel() == 3 and not name.endswith(own)}
    means = [name for name in beside if name.rpartition(".")[2] in ("mu", "mean")]
    deviations = [name for name in beside if name.rpartition(".")[2] in ("sigma", "std")]
    if len(means) != 1 or len(deviations) != 1:
        return state
    stated = beside[means[0]], beside[deviations[0]]
    used = layer.mean.flatten(), layer.std.flatten()
    if not all(torch.allclose(one.float(), other, rtol=0, atol=1e-4) for one, other in zip(stated, used, strict=True)):
        text = "/".join(":".join(f"{number:.6g}" for number in part.tolist()) for part in stated)
        raise ValueError(
            f"{path} holds a normalisation of its own ({means[0]}, {deviations[0]}), which is not the one in use: add"
            f" norm={text} to the network's name."
        )
    return {name: value for name, value in state.items() if name not in (means[0], deviations[0])}


def _recorded_name(header: dict[str, Any]) -> str:
    """The name in the header of a file, with the normalisation it was trained with."""
    name = str(header["name"])
    # Files that do not record it are older, and networks of timm were trained with that of CIFAR-10 then.
    norm = header.get("norm", "cifar10" if name.startswith("timm:") else None)
    return name if norm is None else f"{name},norm={norm}"


def _check_name(source: str | Path, asked: ClassifierName, own: ClassifierName) -> None:
    """Refuse a given name of another network than a source's own, and options that would change nothing."""
    if own.network and asked.network and (asked.head != own.head or asked.weights not in ("", own.weights)):
        raise ValueError(
            f"{source} is {own.head}, and the given name says {asked.head}: leave the name out, or give options alone,"
            " as in norm=half."
        )
    if unused := [name for name, value in asked.options.items() if own.options.get(name) != value]:
        raise ValueError(
            f"{source} is a finished network: a given name can change its norm and size, not {', '.join(unused)}."
        )


def _check_classes(source: str | Path, classes: int, expected: int | None) -> None:
    """Refuse a classifier of other classes than those of the data."""
    if expected not in (None, classes):
        hint = " Of a part of ImageNet's classes it needs --data.label_space imagenet." if classes == 1000 else ""
        raise ValueError(f"{source} tells {classes} classes apart, and the data have {expected}.{hint}")


def _prepare(model: nn.Module, name: ClassifierName) -> nn.Module:
    """Put the normalisation and the input size that a name asks for before a network, in place of those it has."""
    if isinstance(model, ResizedClassifier):
        model.network = _prepare(model.network, replace(name, size=None))
        model.size = name.size or model.size
        return model
    if name.norm is not None:
        if isinstance(getattr(model, "normalize", None), Normalize):
            model.normalize = Normalize(*name.norm)
        else:
            model = NormalizedClassifier(model, *name.norm)
    return model if name.size is None else ResizedClassifier(model, name.size)
