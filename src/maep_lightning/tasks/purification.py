"""Stages 2 and 3: purification fine-tuning on (attacked, clean) pairs, and the joint training of MAEP's Eq. (12)."""

from typing import Any, Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from maep_lightning.functional.augment import random_flip
from maep_lightning.functional.losses import PixelLoss, pixel_distance, visible_patch_loss
from maep_lightning.functional.patches import patchify
from maep_lightning.models.classifiers import load_classifier
from maep_lightning.tasks.base import Optimization
from maep_lightning.tasks.defence import LoRA, PurifierTask, Trainable
from maep_lightning.tasks.pairs import PairAttack, PairPool, check_disturbance, disturb

Objective = Literal["A", "B", "C"]


class PurifierFinetuning(PurifierTask):
    """Teach a masked autoencoder to return the clean image of an attacked one.

    With x the clean image, x' the attacked one, P_r the network at mask ratio r, d the pixel distance and MLM the loss
    of pre-training (l2 on the removed patches, in the normalised space), the loss is by `objective`

    - B: d(P_r(x'), x) over all patches: the purification loss of the two-stage method, MAEP's Eq. (2). From scratch and
      at r > 0 it is a joint training too, Eq. (12) with one distance on removed and visible patches;
    - A: MLM(P_r(x), x) + `trade_off` x d(P_r(x'), x);
    - C: MLM(P_r(x'), x) + `trade_off` x d(P_r(x'), x) over the visible patches.

    A and C are the other readings of Eq. (12), whose public text leaves open which images the masked term sees.
    `consistency` adds the divergence between the frozen classifier's predictions on the purified and on the clean
    image; 0 is the paper's loss.

    Args:
        classifier: File of the frozen classifier.
        classifier_name: What network the classifier's file holds, if it does not say it itself; or options alone, such
            as `norm=half`.
        num_classes: Number of classes K, needed with `classifier_name`.
        surrogate: File of another classifier that the training attack works on; None attacks the classifier itself.
        surrogate_name: What network the surrogate's file holds, if it does not say it itself.
        weights: File of the purifier to start from, such as the one pre-training left; None starts from scratch.
        shape: Name of the architecture; a purifier's file knows its own.
        overrides: Fields of the shape to replace.
        objective: `A`, `B` or `C`.
        trade_off: Weight of the pixel distance in A and C, the paper's lambda.
        mask_ratio: Share of removed patches while training; the paper takes 0.5, and 0 for LoRA.
        loss: The pixel distance: `l1` (the paper), `l2` or `charbonnier`.
        consistency: Weight of the consistency term at the end of the training.
        consistency_start: Its weight at the beginning; it changes linearly. 0 for a network that cannot denoise yet,
            which answers the term by giving up detail; that of the end for one that can, as in the LoRA stage.
        clean_fraction: Share of the samples of a batch that stay unattacked, so that clean images pass unharmed.
        noise: Largest standard deviation, on the [0, 1] scale, of Gaussian noise that is added to the purifier's input;
            each sample's is drawn evenly from 0 on. For a purifier that is to stand behind `noise:STD`.
        attack: How the pairs are made.
        trainable: `all`, or `decoder` for the ViT decoder alone, at full rank.
        lora: Train adapters of this kind on the decoder, and nothing else.
        optimization: The optimiser's settings.

    Raises:
        ValueError: If settings contradict each other.
    """

    def __init__(
        self,
        classifier: str,
        classifier_name: str | None = None,
        num_classes: int | None = None,
        surrogate: str | None = None,
        surrogate_name: str | None = None,
        weights: str | None = None,
        shape: str = "maep_conv_patch4_32",
        overrides: dict[str, Any] | None = None,
        objective: Objective = "B",
        trade_off: float = 1.0,
        mask_ratio: float = 0.0,
        loss: PixelLoss = "l1",
        consistency: float = 0.0,
        consistency_start: float = 0.0,
        clean_fraction: float = 0.0,
        noise: float = 0.0,
        attack: PairAttack | None = None,
        trainable: Trainable = "all",
        lora: LoRA | None = None,
        optimization: Optimization | None = None,
    ) -> None:
        super().__init__(
            classifier, classifier_name, num_classes, weights, shape, overrides, trainable, lora, optimization
        )
        self.save_hyperparameters(ignore=["optimization", "attack", "lora"])
        if objective not in get_args(Objective):
            raise ValueError(f"Unknown objective {objective!r}; choose one of {', '.join(get_args(Objective))}.")
        if objective == "B" and trade_off != 1:
            raise ValueError(f"Objective B has one term, nothing to trade off: trade_off = {trade_off} needs A or C.")
        if objective != "B" and mask_ratio == 0:
            raise ValueError(f"Objective {objective} learns from removed patches: give it a mask_ratio above 0.")
        if min(consistency, consistency_start, trade_off) < 0:
            raise ValueError(
                f"Weights must not be negative: consistency = {consistency}, consistency_start = {consistency_start},"
                f" trade_off = {trade_off}."
            )
        check_disturbance(clean_fraction, noise)
        self.surrogate: nn.Module | None = None
        if surrogate is not None:
            self.surrogate = load_classifier(surrogate, surrogate_name, num_classes)
        self.attack = attack or PairAttack()
        self.objective = objective
        self.trade_off = trade_off
        self.mask_ratio = mask_ratio
        self.loss_kind = loss
        self.consistency = (consistency_start, consistency)
        self.clean_fraction = clean_fraction
        self.noise = noise
        self._pool: PairPool | None = None

    @property
    def attack_on(self) -> nn.Module:
        """The frozen classifier that training pairs are attacked on."""
        return self.classifier if self.surrogate is None else self.surrogate

    def attacked(self, images: Tensor, labels: Tensor) -> Tensor:
        """Attack images `(B, 3, H, W)` in [0, 1] with labels `(B,)` as training pairs are; the same shape, detached."""
        return self.attack(self.attack_on, images, labels)

    def training_pairs(self, images: Tensor, labels: Tensor, index: Tensor) -> Tensor:
        """The attacked images of a training batch, from the pool where they are kept.

        Args:
            images: `(B, 3, H, W)` in [0, 1], not augmented unless `attack.refresh` is 1.
            labels: `(B,)`.
            index: `(B,)`, the position of each sample in the training set.

        Returns:
            `(B, 3, H, W)` in [0, 1].

        Raises:
            ValueError: If images are to be kept that are augmented anew in each epoch.
        """
        if self.attack.refresh == 1:
            return self.attacked(images, labels)
        if self._pool is None:
            data: Any = self.trainer.datamodule  # type: ignore[attr-defined]
            if data.augment:
                raise ValueError(
                    f"attack.refresh = {self.attack.refresh} keeps attacked images for later epochs, so the data must"
                    " not be augmented before: set data.init_args.augment to false. Pairs are still flipped, both"
                    " images alike."
                )
            file = self.attack.cache_file(self.attack_on, *data.train_set())
            self._pool = PairPool(data.train_size, images.shape[1:], images.device, self.attack.refresh, file)
        return self._pool.take(index, self.current_epoch, lambda rows: self.attacked(images[rows], labels[rows]))

    def on_train_epoch_end(self) -> None:
        """Bring pairs to disk, where that is asked for: one process after the other, and then all have all."""
        if self._pool is None or self._pool.file is None:
            return
        for process in range(self.trainer.world_size):
            if process == self.trainer.global_rank:
                self._pool.save()
            self.trainer.strategy.barrier()
        if self.trainer.world_size > 1:
            self._pool.merge()

    def losses(self, attacked: Tensor, clean: Tensor) -> tuple[dict[str, Tensor], Tensor]:
        """The terms of the objective, before their weights, and the purified images.

        Args:
            attacked: `(B, 3, H, W)` in [0, 1].
            clean: `(B, 3, H, W)` in [0, 1].

        Returns:
            Scalars, `purification_loss` on the [0, 1] pixel scale and, in A and C, `masked_loss`; and the output
            `(B, 3, H, W)` for the attacked images.
        """
        if self.objective == "B":
            purified = self.purifier.restore(attacked, self.mask_ratio)
            return {"purification_loss": pixel_distance(purified, clean, self.loss_kind).mean()}, purified
        mae = self.mae
        output = mae(attacked, self.mask_ratio)
        if self.objective == "C":
            images, target = (patchify(x, mae.config.patch_size) for x in (output.images, clean))
            distance = visible_patch_loss(images, target, output.mask, self.loss_kind)
            masked = mae.reconstruction_loss(clean, output)
        else:
            distance = pixel_distance(output.images, clean, self.loss_kind).mean()
            masked = mae.reconstruction_loss(clean, mae(clean, self.mask_ratio))
        return {"purification_loss": distance, "masked_loss": masked}, output.images

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        """One step on (attacked, clean) pairs."""
        clean, labels, index = batch
        attacked = self.training_pairs(clean, labels, index)
        if self.trainer.datamodule.spec.flip:  # type: ignore[attr-defined]
            clean, attacked = random_flip(clean, attacked)
        attacked = disturb(attacked, clean, self.clean_fraction, self.noise)
        terms, purified = self.losses(attacked, clean)
        loss = self.trade_off * terms["purification_loss"] + terms.get("masked_loss", 0.0)
        if any(self.consistency):
            with torch.no_grad():
                target = self.classifier(clean).float().softmax(dim=1)
            prediction = self.classifier(purified.clamp(0, 1)).float().log_softmax(dim=1)
            terms["consistency"] = F.kl_div(prediction, target, reduction="batchmean")
            start, end = self.consistency
            progress = self.trainer.global_step / self.trainer.estimated_stepping_batches
            loss = loss + (start + (end - start) * progress) * terms["consistency"]
        self.log_dict({f"train/{name}": value.detach() for name, value in terms.items()})
        self.log("train/loss", loss.detach(), prog_bar=True)
        return loss

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        """Purification loss, and purified clean accuracy, on held-out images under PGD on the classifier.

        The attack is `PairAttack.judge`, whatever pairs are made of, from a fixed start, so that runs compare.
        """
        clean, labels = batch[0], batch[1]
        generator = torch.Generator(clean.device).manual_seed(batch_idx)
        attacked = self.attack.judge()(self.classifier, clean, labels, generator)
        purified = self.purifier(attacked)
        self.log_mean("val/purification_loss", (purified - clean).abs().mean(), len(labels))
        for name, images in (("acc_purified", self.purifier(clean)), ("acc_blind_pgd", purified)):
            correct = (self.classifier(images).argmax(1) == labels).float()
            self.log_mean(f"val/{name}", correct.mean(), len(labels))
