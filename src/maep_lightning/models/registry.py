"""Purifiers by name: trained ones from files, baselines from a short text, fresh ones by shape."""

import difflib
import inspect
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from maep_lightning.models.baselines import BitDepth, Gaussian, Identity, Jpeg, Median, Mirror, Noise, Resize
from maep_lightning.models.diffusion import DiffusionPurifier
from maep_lightning.models.disco import DISCO_SHAPES, Disco, DiscoConfig, DiscoPurifier
from maep_lightning.models.mae import MAEConfig, MaskedAutoencoder
from maep_lightning.models.naming import literal, split_words
from maep_lightning.models.programs import FunctionPurifier, import_network
from maep_lightning.models.purifier import ZOO, PretrainedPurifier, Purifier
from maep_lightning.models.shapes import SHAPES, configure
from maep_lightning.models.trained import load_trained, mix_weights


class Recipe(NamedTuple):
    """How a purifier is made from a text.

    Attributes:
        build: Makes it; its parameters are those of the text, and the first may stand without its name.
        example: Such a text.
    """

    build: Callable[..., nn.Module]
    example: str


RECIPES: dict[str, Recipe] = {
    "identity": Recipe(Identity, "identity"),
    "jpeg": Recipe(Jpeg, "jpeg:75"),
    "bit-depth": Recipe(BitDepth, "bit-depth:4"),
    "median": Recipe(Median, "median:3"),
    "gaussian": Recipe(Gaussian, "gaussian:0.8"),
    "resize": Recipe(Resize, "resize:28"),
    "mirror": Recipe(Mirror, "mirror"),
    "noise": Recipe(Noise, "noise:8/255"),
    "mix": Recipe(mix_weights, "mix:0.5,start=FILE,end=FILE"),
    "diffusion": Recipe(DiffusionPurifier.from_folder, "diffusion:FOLDER,t=0.1"),
}

TRIED = (32, 64, 96, 224)
"""Sides in pixels of the random images that a purifier by import path is tried on; one of them must suit it."""

ROUNDING = 1e-5
"""So far a purifier may leave [0, 1], as interpolation does by rounding."""

_SUFFIXES = (".safetensors", ".pt", ".pth", ".ckpt")


def load_purifier(spec: str | Path) -> nn.Module:
    """A purifier, from a file or from a text that says how to make one.

    A text is `NAME`, `NAME:VALUE` or `NAME:VALUE,PARAMETER=VALUE,...` with a name of `RECIPES`, such as `jpeg:75` or
    `diffusion:weights/ddpm,t=0.1,steps=20`; numbers may be fractions such as `8/255`. Several, joined by `+`, are
    applied one after the other: `noise:0.1+purifier.safetensors`. What exists as a file is taken for that file.

    `python:PACKAGE.MODULE:NAME` is one's own: a network, a function of images, or what makes one of the options that
    may follow, see `import_network`. It is tried on two random images.

    Args:
        spec: The file of a trained purifier of any architecture, the name of one that is shipped, or a text.

    Returns:
        Images `(B, 3, H, W)` in [0, 1] to images of the same shape in [0, 1], in evaluation mode.

    Raises:
        FileNotFoundError: If a file that is named does not exist.
        ValueError: If a name, a parameter or a value is unknown, a file is no purifier, or the library that it needs
            is not installed; the message lists what is known.
    """
    if Path(spec).is_file():
        return load_trained(spec)
    purifiers = [_single(part.strip()) for part in str(spec).split("+")]
    return purifiers[0] if len(purifiers) == 1 else nn.Sequential(*purifiers).eval()


def create_purifier(shape: str, **overrides: Any) -> PretrainedPurifier:
    """Build a purifier of a named shape: a masked autoencoder, or a local implicit network for `disco_*`.

    Args:
        shape: A key of `SHAPES` or `DISCO_SHAPES`.
        overrides: Fields of `MAEConfig` or `DiscoConfig` that replace the shape's own.

    Returns:
        The purifier, freshly initialised, in training mode.

    Raises:
        ValueError: If the shape or a field is unknown; the message lists the nearest names.
    """
    shapes: dict[str, Callable[[], MAEConfig | DiscoConfig]] = {**SHAPES, **DISCO_SHAPES}
    config = configure(shapes, shape, overrides)
    return DiscoPurifier(Disco(config)) if isinstance(config, DiscoConfig) else Purifier(MaskedAutoencoder(config))


def _single(spec: str) -> nn.Module:
    name, _, rest = spec.partition(":")
    shipped = sorted(path.stem for path in ZOO.glob("*.safetensors"))
    if name == "python":
        return _imported(spec, rest)
    if name in RECIPES:
        return _baseline(name, [word.strip() for word in rest.split(",")] if rest else [])
    if spec in shipped or Path(spec).is_file() or "/" in name or Path(name).suffix in _SUFFIXES:
        return load_trained(spec)
    known = [*RECIPES, *shipped, "python:MODULE:NAME"]
    close = difflib.get_close_matches(name, known, n=1)
    hint = f" Did you mean {close[0]}?" if close else ""
    raise ValueError(f"Unknown purifier {spec!r}; known are {', '.join(known)}, and files of trained ones.{hint}")


def _imported(spec: str, rest: str) -> nn.Module:
    """A purifier by import path, tried on random images of the first of `TRIED` that it takes."""
    where, *words = split_words(rest)
    options = {}
    for word in words:
        key, equals, text = word.partition("=")
        if not key or not equals:
            raise ValueError(f"{spec!r}: {word!r} is no option; write python:MODULE:NAME,OPTION=VALUE.")
        options[key] = literal(text)
    purifier = import_network(where, options, FunctionPurifier).eval()
    device = next((weight.device for weight in purifier.parameters()), torch.device("cpu"))
    generator, refusals = torch.Generator().manual_seed(0), []
    for side in TRIED:
        images = torch.rand(2, 3, side, side, generator=generator)
        images[1].round_()  # corners of the cube, whose neighbourhood leaves it
        images = images.to(device)
        try:
            with torch.no_grad(), torch.random.fork_rng():
                purified = purifier(images)
        except Exception as error:  # of foreign code: any
            refusals.append(f"{side} pixels, {type(error).__name__}: {error}".splitlines()[0])
            continue
        _check_purified(spec, images, purified)
        return purifier
    raise ValueError(f"{spec} takes no images (2, 3, H, W) of {TRIED} pixels: {refusals[0]}.")


def _check_purified(spec: str, images: Tensor, purified: Any) -> None:
    """Refuse what is no purified version of images."""
    if not isinstance(purified, Tensor):
        raise ValueError(f"{spec} makes a {type(purified).__name__} of images, not a tensor of purified ones.")
    if purified.shape != images.shape:
        raise ValueError(
            f"{spec} makes {tuple(purified.shape)} of images {tuple(images.shape)}: return the shape that comes in."
        )
    low, high = float(purified.min()), float(purified.max())
    if not (low >= -ROUNDING and high <= 1 + ROUNDING):
        raise ValueError(
            f"{spec} makes values from {low:.3g} to {high:.3g} of images in [0, 1]: a purifier returns images in [0,"
            " 1], so undo a normalisation and end in .clamp(0, 1)."
        )


def _baseline(name: str, words: list[str]) -> nn.Module:
    recipe = RECIPES[name]
    given = inspect.signature(recipe.build).parameters
    parameters = {key: item for key, item in given.items() if item.kind is item.POSITIONAL_OR_KEYWORD}
    takes = f"{name} takes {', '.join(parameters) or 'no parameters'}, as in {recipe.example}"
    values: dict[str, Any] = {}
    for position, word in enumerate(words):
        key, equals, text = word.partition("=")
        if not equals and position == 0 and parameters:
            key, text = next(iter(parameters)), word
        if key not in parameters or key in values or not text:
            close = difflib.get_close_matches(key, parameters, n=1)
            hint = f" Did you mean {close[0]}?" if close else ""
            raise ValueError(f"{name} cannot use {word!r}: {takes}.{hint}")
        values[key] = _value(name, key, text, parameters[key].annotation)
    missing = [
        key for key, parameter in parameters.items() if parameter.default is parameter.empty and key not in values
    ]
    if missing:
        raise ValueError(f"{name} needs {', '.join(missing)}: {takes}.")
    return recipe.build(**values).eval()


def _value(name: str, key: str, text: str, annotation: Any) -> Any:
    try:
        if annotation in (int, int | None):
            return int(text)
        return float(Fraction(text)) if annotation is float else text
    except (ValueError, ZeroDivisionError):
        kind = "a number" if annotation is float else "a whole number"
        raise ValueError(f"{name}: {key} must be {kind}, not {text!r}.") from None
