"""A frozen classifier behind a purifier."""

from torch import Tensor, nn


class DefendedClassifier(nn.Module):
    """`classifier(purifier(images))`, frozen and in evaluation mode, with exact gradients through both.

    Args:
        purifier: Images `(B, 3, H, W)` in [0, 1] to images in [0, 1].
        classifier: Images in [0, 1] to logits `(B, K)`.
    """

    def __init__(self, purifier: nn.Module, classifier: nn.Module) -> None:
        super().__init__()
        self.purifier = purifier
        self.classifier = classifier
        self.eval().requires_grad_(False)

    def forward(self, images: Tensor) -> Tensor:
        """Logits `(B, K)` of the purified images `(B, 3, H, W)` in [0, 1]."""
        return self.classifier(self.purifier(images))  # type: ignore[no-any-return]
