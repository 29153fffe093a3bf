"""Stages 2 and 3: purification fine-tuning on (attacked, clean) pairs, of the whole network or of LoRA adapters."""

from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from maep_lightning.attacks.pgd import pgd
from maep_lightning.attacks.threat import Epsilon, Norm, check_radius
from maep_lightning.functional.augment import random_flip
from maep_lightning.functional.losses import PixelLoss, pixel_distance
from maep_lightning.tasks.base import Optimization
from maep_lightning.tasks.defence import LoRA, PurifierTask


@dataclass
class PairAttack:
    """The attack that makes the training pairs: PGD on the frozen surrogate, never through the purifier.

    Args:
        eps: Radius on the [0, 1] scale, written as 8/255.
        step_size: Length of a step.
        steps: Number of steps; 0 gives random noise.
        norm: `Linf` or `L2`.
        bf16: Whether the attack's passes run in bfloat16, which is cheaper; pairs need not be optimal.
        refresh: Epochs for which a sample's attacked image is kept before it is attacked anew; 1 attacks at every use.
    """

    eps: Epsilon = field(default_factory=lambda: Epsilon("8/255"))
    step_size: Epsilon = field(default_factory=lambda: Epsilon("2/255"))
    steps: int = 10
    norm: Norm = "Linf"
    bf16: bool = True
    refresh: int = 1


class PurifierFinetuning(PurifierTask):
    """Teach a masked autoencoder to return the clean image of an attacked one.

    The loss is the distance between the purified attacked image and the clean one (MAEP's purification loss, l1), over
    the visible patches and, where some are removed, the removed ones alike. `consistency` adds the divergence between
    the frozen surrogate's predictions on the purified and on the clean image; 0 is the paper's loss. Its weight rises
    linearly over the training: a network that cannot denoise yet answers it by giving up detail.

    Args:
        classifier: File of the frozen surrogate that is attacked.
        classifier_name: What network the surrogate's file holds, if it does not say it itself.
        num_classes: Number of classes K, needed with `classifier_name`.
        weights: File of the purifier to start from, such as the one pre-training left; None starts from scratch.
        shape: Name of the architecture, used when `weights` is None.
        overrides: Fields of the shape to replace, used when `weights` is None.
        mask_ratio: Share of removed patches while training; the paper takes 0.5, and 0 for LoRA.
        loss: `l1` (the paper), `l2` or `charbonnier`.
        consistency: Weight of the consistency term at the end of the training.
        clean_fraction: Share of the samples of a batch that stay unattacked, so that clean images pass unharmed.
        attack: How the pairs are made.
        lora: Train adapters of this kind on the decoder instead of the whole network.
        optimization: The optimiser's settings.
    """

    def __init__(
        self,
        classifier: str,
        classifier_name: str | None = None,
        num_classes: int | None = None,
        weights: str | None = None,
        shape: str = "maep_conv_patch4_32",
        overrides: dict[str, Any] | None = None,
        mask_ratio: float = 0.0,
        loss: PixelLoss = "l1",
        consistency: float = 0.0,
        clean_fraction: float = 0.0,
        attack: PairAttack | None = None,
        lora: LoRA | None = None,
        optimization: Optimization | None = None,
    ) -> None:
        super().__init__(
            classifier, classifier_name, num_classes, weights, shape, overrides, lora=lora, optimization=optimization
        )
        self.save_hyperparameters(ignore=["optimization", "attack", "lora"])
        self.attack = attack or PairAttack()
        check_radius(self.attack.eps, self.attack.norm)
        self.mask_ratio = mask_ratio
        self.loss_kind = loss
        self.consistency = consistency
        self.clean_fraction = clean_fraction
        self._pool: Tensor | None = None
        self._age: Tensor | None = None

    def attacked(self, images: Tensor, labels: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Attack images `(B, 3, H, W)` in [0, 1] on the surrogate.

        Returns:
            Attacked images of the same shape, detached.
        """
        settings = self.attack
        with torch.autocast(images.device.type, torch.bfloat16, enabled=settings.bf16):
            return pgd(
                self.classifier, images, labels, settings.eps, settings.step_size, settings.steps, settings.norm,
                generator=generator,
            )  # fmt: skip

    def training_pairs(self, images: Tensor, labels: Tensor, index: Tensor) -> Tensor:
        """The attacked images of a training batch, from the pool where they are young enough.

        Args:
            images: `(B, 3, H, W)` in [0, 1], not augmented when `refresh` is above 1.
            labels: `(B,)`.
            index: `(B,)`, the position of each sample in the training set.

        Returns:
            `(B, 3, H, W)` in [0, 1].
        """
        if self.attack.refresh <= 1:
            return self.attacked(images, labels)
        if self._pool is None or self._age is None:
            if self.trainer.datamodule.augment:  # type: ignore[attr-defined]
                raise ValueError(
                    "attack.refresh above 1 keeps attacked images for later epochs, so the data must not be augmented "
                    "before: set data.init_args.augment to false. Pairs are still flipped, both images alike."
                )
            size = self.trainer.datamodule.train_size  # type: ignore[attr-defined]
            self._pool = torch.empty(size, *images.shape[1:], dtype=torch.uint8, device=images.device)
            self._age = torch.full((size,), self.attack.refresh, device=images.device)
        stale = self._age[index] >= self.attack.refresh
        if stale.any():
            fresh = self.attacked(images[stale], labels[stale])
            self._pool[index[stale]] = (fresh * 255).round().to(torch.uint8)
            self._age[index[stale]] = 0
        self._age[index] += 1
        return self._pool[index].float() / 255

    def purification_loss(
        self, attacked: Tensor, clean: Tensor, generator: torch.Generator | None = None
    ) -> tuple[Tensor, Tensor]:
        """Distance between the purified attacked images and the clean ones, and the purified images.

        Args:
            attacked: `(B, 3, H, W)` in [0, 1].
            clean: `(B, 3, H, W)` in [0, 1].
            generator: Source of the masks.

        Returns:
            A scalar, on the [0, 1] pixel scale, and the purified images.
        """
        purified = self.purifier.restore(attacked, self.mask_ratio, generator)
        return pixel_distance(purified, clean, self.loss_kind).mean(), purified

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        """One step on (attacked, clean) pairs."""
        clean, labels, index = batch
        attacked = self.training_pairs(clean, labels, index)
        if self.trainer.datamodule.spec.flip:  # type: ignore[attr-defined]
            clean, attacked = random_flip(clean, attacked)
        if self.clean_fraction:
            untouched = torch.rand(len(clean), 1, 1, 1, device=clean.device) < self.clean_fraction
            attacked = torch.where(untouched, clean, attacked)
        loss, purified = self.purification_loss(attacked, clean)
        self.log("train/purification_loss", loss.detach())
        if self.consistency:
            with torch.no_grad():
                target = self.classifier(clean).float().softmax(dim=1)
            prediction = self.classifier(purified.clamp(0, 1)).float().log_softmax(dim=1)
            divergence = F.kl_div(prediction, target, reduction="batchmean")
            self.log("train/consistency", divergence.detach())
            progress = self.trainer.global_step / self.trainer.estimated_stepping_batches
            loss = loss + self.consistency * progress * divergence
        self.log("train/loss", loss.detach(), prog_bar=True)
        return loss

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        """Purification loss, and purified clean accuracy, on held-out images attacked with a fixed start."""
        clean, labels = batch[0], batch[1]
        generator = torch.Generator(clean.device).manual_seed(batch_idx)
        attacked = self.attacked(clean, labels, generator)
        purified = self.purifier(attacked)
        self.log_mean("val/purification_loss", (purified - clean).abs().mean(), len(labels))
        for name, images in (("acc_purified", self.purifier(clean)), ("acc_blind_pgd", purified)):
            correct = (self.classifier(images).argmax(1) == labels).float()
            self.log_mean(f"val/{name}", correct.mean(), len(labels))
