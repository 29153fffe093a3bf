"""What stands above the pictures of a report."""

from torch import Tensor

from maep_lightning.attacks.target import Target
from maep_lightning.evaluation.judging import judge
from maep_lightning.evaluation.results import Results


def captions(target: Target, images: Tensor, labels: Tensor, results: Results) -> list[str]:
    """The class that a target gives each image, behind ✓ if it is the label and behind ✗ if not.

    Args:
        target: Who is asked.
        images: `(k, C, H, W)` in [0, 1], on the device of the target.
        labels: `(k,)`, there too.
        results: Whose class names are used.
    """
    predictions = judge(target, images, labels).prediction.tolist()
    return [
        f"{'✓' if prediction == label else '✗'} {results.subject.class_name(prediction)}"
        for prediction, label in zip(predictions, labels.tolist(), strict=True)
    ]
