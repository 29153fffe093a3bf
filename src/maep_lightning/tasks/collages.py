"""Purification before a classifier of large images, learnt from small images alone."""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from maep_lightning.functional.collages import collage_count, collages
from maep_lightning.functional.losses import PixelLoss, feature_distance, pixel_distance
from maep_lightning.functional.tiles import cut_tiles, join_tiles
from maep_lightning.models.layers import outputs_of
from maep_lightning.tasks.base import Optimization
from maep_lightning.tasks.defence import LoRA, PurifierTask, Trainable
from maep_lightning.tasks.pairs import PairAttack, check_disturbance, disturb


class CollageFinetuning(PurifierTask):
    """Teach a purifier of small images what a frozen classifier of large ones looks at.

    Batches of small images become collages (`functional.collages`) of the classifier's size. They are attacked on the
    classifier, away from what it says of them itself, so that the images' own labels are never needed, and purified in
    tiles of the purifier's size, as `tile` does at test time. With x a collage, x' the attacked one, P the purifier in
    tiles and f the classifier, the loss is

        d(P(x'), x) + `consistency` x KL(f(x) || f(P(x'))) + `guidance` x h(P(x'), x)

    with h the `feature_distance` over the `guides`, some of f's layers: a prediction is one statement about a picture,
    a layer's output one about each of its places. With the distance alone a denoiser can only err less, which at 224
    pixels does not move the trade between clean and robust accuracy.

    Args:
        classifier: File of the frozen classifier.
        classifier_name: What network the classifier's file holds, if it does not say it itself; or options alone.
        classes: Number of its classes, needed with `classifier_name`; the data's have nothing to do with them.
        weights: File of the purifier to start from; None starts from scratch.
        shape: Name of the architecture; a purifier's file knows its own.
        overrides: Fields of the shape to replace.
        side: Height and width of the collages in pixels, a multiple of the purifier's size.
        grids: The numbers of rows and columns that collages may have, one of which is drawn for each batch; the batch
            makes as many collages as it fills with the largest. None: the one that tiles have.
        loss: The pixel distance d: `l1`, `l2` or `charbonnier`.
        consistency: Weight of the second term.
        guidance: Weight of the third term.
        guides: The layers of the classifier, by their names in `named_modules`, that the third term compares; a program
            has none.
        clean_fraction: Share of the collages that stay unattacked.
        noise: Largest standard deviation, on the [0, 1] scale, of Gaussian noise that is added to the purifier's input;
            each collage's is drawn evenly from 0 on.
        attack: How collages are attacked; never through the purifier.
        trainable: `all`, or `decoder` for the ViT decoder alone, at full rank.
        lora: Train adapters of this kind on the decoder, and nothing else.
        optimization: The optimiser's settings.

    Raises:
        ValueError: If settings contradict each other.
    """

    needs_labels = False

    def __init__(
        self,
        classifier: str,
        classifier_name: str | None = None,
        classes: int | None = None,
        weights: str | None = None,
        shape: str = "maep_conv_patch4_32",
        overrides: dict[str, Any] | None = None,
        side: int = 224,
        grids: Sequence[int] | None = None,
        loss: PixelLoss = "l1",
        consistency: float = 0.02,
        guidance: float = 0.0,
        guides: Sequence[str] = (),
        clean_fraction: float = 0.25,
        noise: float = 0.0,
        attack: PairAttack | None = None,
        trainable: Trainable = "all",
        lora: LoRA | None = None,
        optimization: Optimization | None = None,
    ) -> None:
        super().__init__(classifier, classifier_name, classes, weights, shape, overrides, trainable, lora, optimization)
        self.save_hyperparameters(ignore=["optimization", "attack", "lora"])
        self.tile = self.mae.config.image_size
        if side < self.tile or side % self.tile:
            raise ValueError(
                f"Collages are purified in tiles of {self.tile} pixels, which do not fill a side of {side}."
            )
        for name, weight in (("consistency", consistency), ("guidance", guidance)):
            if weight < 0:
                raise ValueError(f"{name} is a weight, 0 or more, not {weight}.")
        if bool(guidance) != bool(guides):
            raise ValueError(
                f"guidance = {guidance} is the weight of the layers in guides = {list(guides)}: set both or none."
            )
        with outputs_of(self.classifier, guides):
            pass
        check_disturbance(clean_fraction, noise)
        self.attack = attack or PairAttack()
        if self.attack.refresh != 1:
            raise ValueError("Collages are put together anew in each step, so none are kept: set attack.refresh to 1.")
        self.side = side
        self.grids = [side // self.tile] if grids is None else grids
        self.loss_kind = loss
        self.consistency = consistency
        self.guidance = guidance
        self.guides = guides
        self.clean_fraction = clean_fraction
        self.noise = noise

    def on_fit_start(self) -> None:
        """Also refuse batches that do not fill a collage, and guides that the classifier does not run.

        Raises:
            ValueError: In these cases.
        """
        super().on_fit_start()
        data: Any = self.trainer.datamodule  # type: ignore[attr-defined]
        collage_count(data.image_size, self.side, self.grids, data.batch_size)
        with torch.no_grad():
            self.look(torch.zeros(1, 3, self.side, self.side, device=self.device))

    def purify(self, images: Tensor) -> Tensor:
        """Purify collages `(B, 3, side, side)` in tiles; on the [0, 1] scale, not clamped."""
        return join_tiles(
            self.purifier.restore(cut_tiles(images, self.tile, self.tile)), self.side, self.side, self.tile
        )

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        """One step on the collages of a batch."""
        clean = collages(batch[0], self.side, self.grids)
        with torch.no_grad():
            said, seen = self.look(clean)
        attacked = self.attack(self.classifier, clean, said.argmax(1))
        purified = self.purify(disturb(attacked, clean, self.clean_fraction, self.noise))
        logits, features = self.look(purified.clamp(0, 1))
        terms = {
            "purification_loss": pixel_distance(purified, clean, self.loss_kind).mean(),
            "consistency": F.kl_div(logits.log_softmax(dim=1), said.softmax(dim=1), reduction="batchmean"),
        }
        loss = terms["purification_loss"] + self.consistency * terms["consistency"]
        if self.guides:
            terms["guidance"] = feature_distance(features, seen)
            loss = loss + self.guidance * terms["guidance"]
        self.log_dict({f"train/{name}": value.detach() for name, value in terms.items()})
        self.log("train/loss", loss.detach(), prog_bar=True)
        return loss

    def look(self, images: Tensor) -> tuple[Tensor, list[Tensor]]:
        """The classifier's logits `(B, classes)` of images, and what its `guides` return, in float32."""
        with outputs_of(self.classifier, self.guides) as outputs:
            logits = self.classifier(images).float()
        if missing := [name for name in self.guides if name not in outputs]:
            raise ValueError(f"The classifier is run without its layers {', '.join(missing)}: name others as guides.")
        return logits, [outputs[name].float() for name in self.guides]

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        """Purification loss, and how often the classifier says of purified collages what it says of them unpurified.

        The collages are the same in each epoch, attacked by `PairAttack.judge`; a batch that fills none in some process
        is left out by all, since one that went on alone would wait for the others for ever.
        """
        images = batch[0]
        fewest: Tensor = self.trainer.strategy.reduce(torch.tensor(len(images), device=self.device), reduce_op="min")
        if fewest < max(self.grids) ** 2:
            return
        clean = collages(images, self.side, self.grids, torch.Generator().manual_seed(batch_idx))
        said = self.classifier(clean).argmax(1)
        generator = torch.Generator(clean.device).manual_seed(batch_idx)
        purified = self.purify(self.attack.judge()(self.classifier, clean, said, generator)).clamp(0, 1)
        self.log_mean("val/purification_loss", (purified - clean).abs().mean(), len(clean))
        for name, pictures in (("agree_purified", self.purify(clean).clamp(0, 1)), ("agree_blind_pgd", purified)):
            agree = (self.classifier(pictures).argmax(1) == said).float()
            self.log_mean(f"val/{name}", agree.mean(), len(clean))
