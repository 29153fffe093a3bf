"""A frozen classifier behind a purifier."""

from torch import Tensor, nn

from maep_lightning.models.repeated import RepeatedPurifier, Voting


def stages(purifier: nn.Module, classifier: nn.Module) -> tuple[nn.Module, nn.Module]:
    """What images go through, one after the other: the purifier, and the classifier that takes what it returns.

    Args:
        purifier: Images `(B, 3, H, W)` in [0, 1] to images in [0, 1], or to several versions of each (a vote).
        classifier: Images in [0, 1] to logits `(B, K)`.
    """
    votes = isinstance(purifier, RepeatedPurifier) and purifier.aggregate == "vote"
    return purifier, Voting(classifier) if votes else classifier


class DefendedClassifier(nn.Module):
    """`classifier(purifier(images))`, frozen and in evaluation mode, with exact gradients through both.

    Args:
        purifier: Images `(B, 3, H, W)` in [0, 1] to images in [0, 1], or to several versions of each, which vote.
        classifier: Images in [0, 1] to logits `(B, K)`.
    """

    def __init__(self, purifier: nn.Module, classifier: nn.Module) -> None:
        super().__init__()
        self.purifier, self.classifier = stages(purifier, classifier)
        self.eval().requires_grad_(False)

    def forward(self, images: Tensor) -> Tensor:
        """Logits `(B, K)` of the purified images `(B, 3, H, W)` in [0, 1]."""
        return self.classifier(self.purifier(images))  # type: ignore[no-any-return]
