"""The purifier that a stage begins with."""

from typing import Any

from lightning.pytorch.utilities import rank_zero_info

from maep_lightning.models.mae_weights import is_published, load_published
from maep_lightning.models.purifier import PretrainedPurifier, Purifier
from maep_lightning.models.registry import create_purifier
from maep_lightning.models.trained import load_trained


def start_purifier(weights: str | None, shape: str, overrides: dict[str, Any] | None) -> PretrainedPurifier:
    """Build the purifier that a stage begins with.

    Args:
        weights: A purifier's file or name, which brings its architecture, or a file of a published masked autoencoder
            (see `load_published`), which is loaded into `shape` and reported; None starts from scratch.
        shape: Name of the architecture, as in `create_purifier`.
        overrides: Fields of the shape to replace; a purifier's file must agree with them.

    Returns:
        The purifier, in training mode.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the file or the shape is not usable, or `overrides` are not those of a purifier's file.
    """
    if weights is not None and not is_published(weights):
        trained = load_trained(weights).train()
        built = trained.config()
        ignored = {name: value for name, value in (overrides or {}).items() if built.get(name, trained) != value}
        if ignored:
            raise ValueError(f"{weights} brings its own architecture, of which {ignored} is not a part: leave it out.")
        return trained
    purifier = create_purifier(shape, **(overrides or {}))
    if weights is not None:
        if not isinstance(purifier, Purifier):
            raise ValueError(
                f"{weights} holds bare weights, from which a masked autoencoder alone can start; {shape} is none."
            )
        rank_zero_info(str(load_published(purifier.mae, weights)))
    return purifier
