"""White-box aware training: the purifier meets attacks that went through it, the classifier stays frozen."""

from dataclasses import dataclass, field
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from maep_lightning.attacks.pgd import pgd
from maep_lightning.attacks.threat import Epsilon, check_radius
from maep_lightning.functional.losses import PixelLoss, pixel_distance
from maep_lightning.tasks.base import Optimization
from maep_lightning.tasks.defence import LoRA, PurifierTask, Trainable, check_noise


@dataclass
class WhiteboxAttack:
    """The attack on purifier and classifier together, with exact gradients through both, anew in every step.

    One step of 1.25 eps from a random start is the cheapest that works (Wong et al. 2020); 7 to 10 steps of a quarter
    of eps are the usual stronger choice (Madry et al. 2018).

    Args:
        eps: Radius on the [0, 1] scale, written as 8/255.
        step_size: Length of a step.
        steps: Number of steps.
        norm: `Linf` or `L2`.
        growth: Share of the training in which radius and step grow linearly from 0 to their full length.
        draws: Random masks and noises over which a gradient is averaged (EOT); 1 unless the purifier is stochastic.

    Raises:
        ValueError: If a setting is out of range.
    """

    eps: Epsilon = field(default_factory=lambda: Epsilon("8/255"))
    step_size: Epsilon = field(default_factory=lambda: Epsilon("10/255"))
    steps: int = 1
    norm: Literal["Linf", "L2"] = "Linf"
    growth: float = 0.0
    draws: int = 1

    def __post_init__(self) -> None:
        check_radius(self.eps, self.norm)
        if self.steps < 1 or self.step_size <= 0:
            raise ValueError(f"An attack takes steps of a length above 0, not {self.steps} of {self.step_size}.")
        if self.draws < 1 or not 0 <= self.growth <= 1:
            raise ValueError(f"draws must be at least 1 and growth in [0, 1], not {self.draws} and {self.growth}.")


class AdversarialFinetuning(PurifierTask):
    """Train a purifier so that the frozen classifier behind it survives attacks on both.

    With P the purifier, f the frozen classifier, x' the image attacked through f and P, the loss is the sum of

    - `adversarial` x CE(f(P(x')), y): adversarial training (Madry et al. 2018) of the purifier, as in AToP (Lin et al.
      2024);
    - `clean` x CE(f(P(x)), y);
    - `consistency` x KL(f(P(x)) || f(P(x'))): with `clean` 1 and `adversarial` 0 it is TRADES (Zhang et al. 2019);
    - `pixel` x d(P(x'), x): the purification loss, which keeps the output an image of the input.

    Args:
        classifier: File of the frozen classifier.
        classifier_name: What network the classifier's file holds, if it does not say it itself; or options alone, such
            as `norm=half`.
        num_classes: Number of classes K, needed with `classifier_name`.
        weights: File of the purifier to start from; None starts from scratch.
        shape: Name of the architecture; a purifier's file knows its own.
        overrides: Fields of the shape to replace.
        adversarial: Weight of the cross-entropy on attacked images.
        clean: Weight of the cross-entropy on clean images.
        consistency: Weight of the divergence between the predictions on clean and attacked images.
        pixel: Weight of the purification loss, on the [0, 1] pixel scale.
        loss: Kind of the purification loss: `l1`, `l2` or `charbonnier`.
        mask_ratio: Share of randomly removed patches while training, under attack too.
        noise: Standard deviation of the Gaussian noise added to the purifier's input, on the [0, 1] scale, under attack
            too.
        attack: The attack through purifier and classifier.
        trainable: `all`, or `decoder` for the ViT decoder alone, at full rank.
        lora: Train adapters of this kind on the decoder, and nothing else.
        optimization: The optimiser's settings.

    Raises:
        ValueError: If no term has a weight, or a setting is out of range.
    """

    def __init__(
        self,
        classifier: str,
        classifier_name: str | None = None,
        num_classes: int | None = None,
        weights: str | None = None,
        shape: str = "maep_conv_patch4_32",
        overrides: dict[str, Any] | None = None,
        adversarial: float = 1.0,
        clean: float = 0.0,
        consistency: float = 0.0,
        pixel: float = 0.0,
        loss: PixelLoss = "l1",
        mask_ratio: float = 0.0,
        noise: float = 0.0,
        attack: WhiteboxAttack | None = None,
        trainable: Trainable = "all",
        lora: LoRA | None = None,
        optimization: Optimization | None = None,
    ) -> None:
        super().__init__(
            classifier, classifier_name, num_classes, weights, shape, overrides, trainable, lora, optimization
        )
        self.save_hyperparameters(ignore=["optimization", "attack", "lora"])
        self.attack = attack or WhiteboxAttack()
        check_noise(noise)
        self.weight = {"adversarial": adversarial, "clean": clean, "consistency": consistency, "pixel": pixel}
        if min(self.weight.values()) < 0 or not any(self.weight.values()):
            raise ValueError(f"The weights must not be negative, nor all zero: {self.weight}.")
        self.loss_kind = loss
        self.mask_ratio = mask_ratio
        self.noise = noise

    def purify(self, images: Tensor) -> Tensor:
        """The purified images `(B, 3, H, W)` in [0, 1], with the noise and the masks of the training."""
        if self.noise:
            images = (images + self.noise * torch.randn_like(images)).clamp(0, 1)
        return self.purifier.restore(images, self.mask_ratio).clamp(0, 1)

    def expected_logits(self, images: Tensor) -> Tensor:
        """Log of the class probabilities `(B, K)`, averaged over the attack's draws of noise and masks."""
        draws: list[Tensor] = [self.classifier(self.purify(images)).float() for _ in range(self.attack.draws)]
        if len(draws) == 1:
            return draws[0]
        return torch.stack(draws).log_softmax(dim=2).logsumexp(dim=0)

    def attacked(self, images: Tensor, labels: Tensor, scale: float = 1.0) -> Tensor:
        """Attack images through purifier and classifier.

        Args:
            images: `(B, 3, H, W)` in [0, 1].
            labels: `(B,)`.
            scale: Factor of radius and step.

        Returns:
            `(B, 3, H, W)` in [0, 1], detached.
        """
        settings = self.attack
        return pgd(
            self.expected_logits, images, labels, scale * settings.eps, scale * settings.step_size, settings.steps,
            settings.norm,
        )  # fmt: skip

    def losses(self, clean: Tensor, attacked: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """The terms that have a weight, before it.

        Args:
            clean: `(B, 3, H, W)` in [0, 1].
            attacked: `(B, 3, H, W)` in [0, 1].
            labels: `(B,)`.

        Returns:
            Scalars by the name of their weight.
        """
        terms: dict[str, Tensor] = {}
        purified = self.purify(attacked)
        logits = self.classifier(purified).float()
        if self.weight["adversarial"]:
            terms["adversarial"] = F.cross_entropy(logits, labels)
        if self.weight["clean"] or self.weight["consistency"]:
            clean_logits = self.classifier(self.purify(clean)).float()
            if self.weight["clean"]:
                terms["clean"] = F.cross_entropy(clean_logits, labels)
            if self.weight["consistency"]:
                terms["consistency"] = F.kl_div(
                    logits.log_softmax(dim=1), clean_logits.log_softmax(dim=1), reduction="batchmean", log_target=True
                )
        if self.weight["pixel"]:
            terms["pixel"] = pixel_distance(purified, clean, self.loss_kind).mean()
        return terms

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        """One step on a batch that is attacked through the present purifier."""
        images, labels = batch[0], batch[1]
        attacked = self.attacked(images, labels, self._growth())
        terms = self.losses(images, attacked, labels)
        loss = torch.stack([self.weight[name] * value for name, value in terms.items()]).sum()
        self.log_dict({f"train/{name}": value.detach() for name, value in terms.items()})
        self.log("train/loss", loss.detach(), prog_bar=True)
        return loss

    def _growth(self) -> float:
        if not self.attack.growth:
            return 1.0
        progress = (self.trainer.global_step + 1) / float(self.trainer.estimated_stepping_batches)
        return min(1.0, progress / self.attack.growth)

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        """Accuracy of the defended classifier on clean held-out images; the dashboard's callback attacks some."""
        images, labels = batch[0], batch[1]
        purified = self.purifier(images)
        self.log_mean("val/purification_loss", (purified - images).abs().mean(), len(labels))
        correct = (self.classifier(purified).argmax(1) == labels).float()
        self.log_mean("val/acc_purified", correct.mean(), len(labels))
