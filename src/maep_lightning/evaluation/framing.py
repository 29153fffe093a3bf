"""Whether image files are resized and cropped as the published weights of a frozen classifier want them."""

from torch import nn

from maep_lightning.models.preprocessing import Framing, NormalizedClassifier, ResizedClassifier

TOLERANCE = 0.01
"""Difference of two shares of a side, about three pixels of 256, that is not told."""


def check_framing(classifier: nn.Module, framing: tuple[int, float, str] | None) -> tuple[str, ...]:
    """Compare how files become images with what a library states for the weights that it fetched.

    Nothing is said of images of a size that the library states nothing for, nor where they are not cropped and the
    library's are: such files are crops already.

    Args:
        classifier: A frozen classifier.
        framing: Side in pixels, crop and interpolation of its images, as `Framing` has them; None where they are not
            known.

    Returns:
        A warning with the options to give; nothing where all is well.
    """
    modules = list(classifier.modules())
    if framing is None or any(isinstance(module, ResizedClassifier) for module in modules):
        return ()
    own = Framing(*framing)
    stated = [each for module in modules if isinstance(module, NormalizedClassifier) for each in module.framings]
    wanted = next((each for each in stated if each.size == own.size), own)
    if own.crop_pct == 1 > wanted.crop_pct:
        return ()
    options = []
    if abs(wanted.crop_pct - own.crop_pct) > TOLERANCE:
        options.append(f"--data.crop_pct {wanted.crop_pct:.4g}")
    if wanted.interpolation != own.interpolation:
        options.append(f"--data.interpolation {wanted.interpolation}")
    if not options:
        return ()
    return (
        f"The classifier's weights are for images with a crop_pct of {wanted.crop_pct:.4g}, {wanted.interpolation},"
        f" and get them with {own.crop_pct:.4g}, {own.interpolation}: give {' and '.join(options)}.",
    )
