"""Perturbation sizes and norms, as people write them."""

from fractions import Fraction
from typing import Literal, Self

Norm = Literal["Linf", "L2", "L1"]


class Epsilon(float):
    """A perturbation radius on the [0, 1] pixel scale that remembers how it was written.

    Args:
        value: A number or a text such as `8/255`.

    Raises:
        ValueError: If the text is no number, or the value is negative or not finite.
    """

    text: str

    def __new__(cls, value: str | float) -> Self:  # noqa: D102
        text = value.replace(" ", "") if isinstance(value, str) else getattr(value, "text", repr(float(value)))
        try:
            number = float(Fraction(text)) if "/" in text else float(text)
        except (ValueError, ZeroDivisionError):
            raise ValueError(f"eps must be a number or a fraction such as 8/255, not {value!r}.") from None
        if not 0 <= number < float("inf"):
            raise ValueError(f"eps must be a finite number of at least 0, not {value!r}.")
        self = super().__new__(cls, number)
        self.text = text
        return self

    def __str__(self) -> str:
        """The value as it was written."""
        return self.text

    def __reduce__(self) -> tuple[type[Self], tuple[str]]:
        """Keep the text when pickled or copied."""
        return type(self), (self.text,)


LARGEST: dict[Norm, float] = {"Linf": 1.0, "L2": 16.0, "L1": float("inf")}
"""The largest radius that can be meant; what is beyond is a forgotten division by 255.

In Linf it is the whole pixel range. In L2 the ball of 16 holds that of Linf 8/255 at 224 pixels, whose corners are
sqrt(3 * 224 * 224) * 8/255 = 12.2 away, while radii written in 255ths begin at 36/255. In L1 no bound tells both apart:
60 is in use, and so is 3000/255.
"""


def check_radius(eps: float, norm: Norm) -> None:
    """Refuse a radius that cannot be meant.

    Args:
        eps: Radius on the [0, 1] pixel scale.
        norm: The norm it is measured in.

    Raises:
        ValueError: If it is above that of `LARGEST`, which is a forgotten division by 255, or if the norm is unknown.
    """
    if norm not in LARGEST:
        raise ValueError(f"norm must be one of {', '.join(LARGEST)}, not {norm!r}.")
    if eps > LARGEST[norm]:
        why = "the whole pixel range [0, 1]" if norm == "Linf" else f"any radius in use ({LARGEST[norm]:g} at most)"
        raise ValueError(f"eps = {eps} is larger than {why} in {norm}. Did you mean {eps:g}/255? Write it so.")
