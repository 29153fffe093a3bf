"""The text by which a classifier is named: network, weights, options."""

import ast
from dataclasses import dataclass
from typing import Any, Self

from maep_lightning.models.preprocessing import Statistics, parse_normalization


@dataclass(frozen=True)
class ClassifierName:
    """A classifier's name taken apart: `[LIBRARY:]NETWORK[@WEIGHTS][,OPTION=VALUE...]`.

    Args:
        library: `timm`, `torchvision` or `python`; empty for a network of ours.
        network: Its name there; empty where only options were given.
        weights: Which of the library's weights; empty for its default.
        options: Keyword arguments of the library's function.
        norm: Mean and standard deviation in place of the network's own; None to keep these.
        size: Side that images are resized to inside the classifier; None to leave them.
    """

    library: str
    network: str
    weights: str
    options: dict[str, Any]
    norm: Statistics | None
    size: int | None

    @property
    def head(self) -> str:
        """Library and network, as they are written."""
        return f"{self.library}:{self.network}" if self.library else self.network

    @classmethod
    def parse(cls, text: str) -> Self:
        """Take a name apart.

        Args:
            text: The name, such as `torchvision:resnet50@IMAGENET1K_V2` or `resnet20,norm=cifar10`.

        Returns:
            Its parts.

        Raises:
            ValueError: If an option is not `NAME=VALUE`, or the normalisation or the size is none.
        """
        words = split_words(text)
        head = "" if "=" in words[0] else words.pop(0)
        options: dict[str, Any] = {}
        for word in words:
            key, equals, value = word.partition("=")
            if not key or not equals:
                raise ValueError(
                    f"{text!r}: {word!r} is no option; write NETWORK,OPTION=VALUE as in resnet20,norm=half."
                )
            options[key] = value if key == "norm" else literal(value)
        norm, size = options.pop("norm", None), options.pop("size", None)
        if size is not None and (not isinstance(size, int) or size < 1):
            raise ValueError(f"{text!r}: size is the side of an image in pixels, not {size!r}.")
        library, colon, rest = head.partition(":")
        network, _, weights = (rest if colon else head).partition("@")
        statistics = None if norm is None else parse_normalization(norm)
        return cls(library if colon else "", network, weights, options, statistics, size)


def split_words(text: str) -> list[str]:
    """The words of a name between its commas; those in brackets, as in `num_heads=(6,6,12,24)`, belong to a value."""
    words, depth = [""], 0
    for character in text:
        depth += (character in "([{") - (character in ")]}")
        if character == "," and depth <= 0:
            words.append("")
        else:
            words[-1] += character
    return [word.strip() for word in (text.split(",") if depth else words)]  # brackets without a partner are letters


def literal(text: str) -> Any:
    """A number, a truth value or the like from a text; the text itself where it is none of Python's literals."""
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text
