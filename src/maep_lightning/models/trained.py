"""Trained purifiers from their files, one or the way between two."""

from pathlib import Path

import torch
from torch import nn

from maep_lightning.models.disco import DiscoPurifier
from maep_lightning.models.purifier import PretrainedPurifier, Purifier, read_purifier


def load_trained(path: str | Path) -> PretrainedPurifier:
    """A trained purifier of whatever architecture its file names.

    Args:
        path: The file, or the name of one that is shipped.

    Returns:
        The purifier, in evaluation mode.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the file is corrupt, no purifier, or of an unknown architecture.
    """
    state, header = read_purifier(path)
    for kind in (Purifier, DiscoPurifier):
        if kind.architecture == header["architecture"]:
            return kind.rebuild(state, header, path)
    raise ValueError(
        f"{path} is a purifier of the unknown architecture {header['architecture']!r}; update the package."
    )


def training_data(purifier: nn.Module | None) -> str | None:
    """The data that the files of a purifier say that it was trained on.

    Args:
        purifier: The purifier, whatever is before or around the trained ones in it; None without one.

    Returns:
        The data of the last stage of each; None where weights are of unknown origin, or there are none.
    """
    modules = [] if purifier is None else list(purifier.modules())
    trained = [module for module in modules if isinstance(module, PretrainedPurifier)]
    known = {weight for module in trained for weight in module.parameters()}
    if not trained or known != {weight for module in modules for weight in module.parameters()}:
        return None
    stated = [module.trained_on for module in trained]
    return None if None in stated else " and ".join(dict.fromkeys(map(str, stated)))


def trained_on(purifier: nn.Module | None) -> str:
    """What the files of a purifier say that it was trained on, for a report.

    Args:
        purifier: As in `training_data`.

    Returns:
        That data and where it is said; `not stated` where it is not.
    """
    data = training_data(purifier)
    return "not stated" if data is None else f"{data} (the purifier's last stage, as its file says)"


def mix_weights(share: float, start: str, end: str) -> PretrainedPurifier:
    """A purifier whose weights lie between those that a fine-tuning started from and those that it ended with.

    Wortsman et al. 2022, "Robust fine-tuning of zero-shot models" (WiSE-FT): on the straight way between the two lie
    networks that have most of what was learnt and lost little of what was there, and `share` is the dial.

    Args:
        share: Share of the end, in [0, 1].
        start: File, or name of a shipped one, that the fine-tuning started from.
        end: File that it left.

    Returns:
        The purifier, in evaluation mode.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the share is none, or the two are not of one architecture.
    """
    if not 0 <= share <= 1:
        raise ValueError(f"mix: share must be in [0, 1], as in mix:0.5, not {share}.")
    first, last = load_trained(start), load_trained(end)
    if type(first) is not type(last) or first.config() != last.config():
        raise ValueError(f"mix: {start} and {end} are not of one architecture, so there is nothing between them.")
    if last.trained_on != first.trained_on:
        first.trained_on = f"{first.trained_on} and {last.trained_on}" if first.trained_on and last.trained_on else None
    with torch.no_grad():
        for here, there in zip(first.state_dict().values(), last.state_dict().values(), strict=True):
            here.lerp_(there, share)
    return first
