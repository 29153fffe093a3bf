"""What the callbacks that watch a purifier during training have in common."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any, Literal, NamedTuple

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor, nn

from maep_lightning.attacks.pgd import pgd
from maep_lightning.attacks.target import exact_arithmetic, isolated_rng
from maep_lightning.attacks.threat import Epsilon, check_radius

EPS = Epsilon("8/255")


class Watched(NamedTuple):
    """The networks that are watched, and the fixed images they are watched on.

    Attributes:
        purifier: The network in training.
        classifier: The frozen network it defends, if the task has one.
        images: `(N, 3, H, W)` float32 in [0, 1], validation images.
        labels: `(N,)`.
        attacked: `(N, 3, H, W)` in [0, 1], made once against the bare classifier, or noise where there is none.
    """

    purifier: nn.Module
    classifier: nn.Module | None
    images: Tensor
    labels: Tensor
    attacked: Tensor


class PurifierMonitor(Callback):
    """Calls `observe` before the first step and then every N epochs or steps of `fit`, on fixed validation images.

    Epochs are observed inside the validation loop, at its last batch, where averaged weights (EMA) are in place
    whatever the order of the callbacks; at the end of the training epoch where there is no validation. Steps are
    observed with the weights as they are. Test images are never touched.

    Args:
        num_images: Number of validation images.
        eps: Radius on the [0, 1] scale, such as 8/255.
        norm: `Linf` or `L2`.
        step_size: Length of an attack step; a quarter of `eps` if None.
        steps: Number of steps of the attack (PGD, random start).
        every_n_epochs: Epochs between two observations.
        every_n_steps: Optimiser steps between two observations; replaces `every_n_epochs`.
        seed: Seed of the attack's start, the same at each observation.

    Raises:
        ValueError: If a number is not positive, or `eps` is above 1 in Linf.
    """

    needs_classifier: bool

    def __init__(
        self,
        num_images: int,
        eps: Epsilon = EPS,
        norm: Literal["Linf", "L2"] = "Linf",
        step_size: Epsilon | None = None,
        steps: int = 10,
        every_n_epochs: int = 1,
        every_n_steps: int | None = None,
        seed: int = 0,
    ) -> None:
        cadence = every_n_epochs if every_n_steps is None else every_n_steps
        if min(num_images, steps, cadence) < 1:
            raise ValueError(f"{type(self).__name__}: num_images, steps and every_n_* must be at least 1.")
        check_radius(eps, norm)
        self.num_images, self.eps, self.norm, self.steps = num_images, Epsilon(eps), norm, steps
        self.step_size = Epsilon(eps / 4) if step_size is None else Epsilon(step_size)
        self.every_n_epochs, self.every_n_steps, self.seed = every_n_epochs, every_n_steps, seed
        self._watched: Watched | None = None
        self._last_step = -1

    @property
    def threat(self) -> str:
        """The threat model as it stands in tags, such as `Linf_8-255`."""
        return f"{self.norm}_{str(self.eps).replace('/', '-')}"

    def observe(self, trainer: Trainer, pl_module: LightningModule, watched: Watched) -> dict[str, float]:
        """Look at the networks; they are in evaluation mode, in fp32, and gradients may be taken.

        Args:
            trainer: The trainer.
            pl_module: The task.
            watched: The networks, and images on their device.

        Returns:
            Metrics that other callbacks may monitor, the same on every process.
        """
        raise NotImplementedError

    def attack(self, model: nn.Module | None, images: Tensor, labels: Tensor) -> Tensor:
        """PGD with the settings of this callback; only its random start where there is no model.

        Args:
            model: Images to logits `(N, K)`.
            images: `(N, 3, H, W)` in [0, 1].
            labels: `(N,)`.

        Returns:
            `(N, 3, H, W)` in [0, 1].
        """
        generator = torch.Generator(images.device).manual_seed(self.seed)
        steps = self.steps if model is not None else 0
        target = model if model is not None else nn.Identity()
        return pgd(target, images, labels, self.eps, self.step_size, steps, self.norm, generator=generator)

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Choose the images and attack them, once for the whole training."""
        self._watched, self._last_step = None, -1
        classifier = getattr(pl_module, "classifier", None)
        purifier = getattr(pl_module, "purifier", None)
        if purifier is None or (classifier is None and self.needs_classifier):
            lacking = "purifier" if purifier is None else "classifier"
            rank_zero_warn(f"{type(self).__name__} is idle: {type(pl_module).__name__} has no {lacking}.")
            return
        if classifier is not None and any(parameter.requires_grad for parameter in classifier.parameters()):
            raise ValueError(
                f"{type(self).__name__} needs a frozen classifier: the images attacked at the start would be stale "
                f"when it changes. Call classifier.requires_grad_(False), or leave the callback out."
            )
        monitor_set = getattr(getattr(trainer, "datamodule", None), "monitor_set", None)
        if monitor_set is None:
            raise ValueError(f"{type(self).__name__} takes its images from ImageDataModule: give the trainer one.")
        data = monitor_set(self.num_images)
        images, labels = data.images.to(pl_module.device).float() / 255, data.labels.to(pl_module.device)
        self._watched = Watched(purifier, classifier, images, labels, images)
        with self._measuring(pl_module.device, self._watched):
            attacked = self.attack(classifier, images, labels)
            self._watched = self._watched._replace(attacked=attacked)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Observe the network before its first step."""
        if trainer.global_step == 0:
            self._observe(trainer, pl_module)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Observe every `every_n_steps` optimiser steps."""
        step = trainer.global_step
        if self.every_n_steps is not None and step % self.every_n_steps == 0 and step != self._last_step:
            pl_module.log_dict(self._observe(trainer, pl_module), logger=False, on_step=True, on_epoch=False)

    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Observe at the last validation batch of every `every_n_epochs`-th epoch."""
        if trainer.sanity_checking or trainer.state.fn != "fit" or not self._is_due(trainer):
            return
        batches = trainer.num_val_batches
        if dataloader_idx == len(batches) - 1 and batch_idx == batches[-1] - 1:
            metrics = self._observe(trainer, pl_module)
            pl_module.log_dict(
                metrics, logger=False, on_step=False, on_epoch=True, sync_dist=True, batch_size=1,
                add_dataloader_idx=False,
            )  # fmt: skip

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Observe every `every_n_epochs`-th epoch of a training without validation."""
        if not trainer.enable_validation and self._is_due(trainer):
            metrics = self._observe(trainer, pl_module)
            pl_module.log_dict(metrics, logger=False, on_step=False, on_epoch=True, sync_dist=True)

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Let the images go."""
        self._watched = None

    def _is_due(self, trainer: Trainer) -> bool:
        return self.every_n_steps is None and (trainer.current_epoch + 1) % self.every_n_epochs == 0

    def _observe(self, trainer: Trainer, pl_module: LightningModule) -> dict[str, float]:
        if self._watched is None:
            return {}
        self._last_step = trainer.global_step
        with self._measuring(pl_module.device, self._watched):
            return self.observe(trainer, pl_module, self._watched)

    def _measuring(self, device: torch.device, watched: Watched) -> AbstractContextManager[None]:
        modules = [module for module in (watched.purifier, watched.classifier) if module is not None]
        return measuring(device, self.seed, *modules)


@contextmanager
def measuring(device: torch.device, seed: int, *modules: nn.Module) -> Iterator[None]:
    """Evaluation mode and full precision, gradients possible; modes and random streams are given back as they were.

    Attacks need gradients, which validation switches off, and low precision would mask them. Tensors that were made
    under inference mode must be cloned inside.

    Args:
        device: Where the modules are.
        seed: Seed of the random streams inside.
        modules: What is put into evaluation mode.
    """
    modes = [(part, part.training) for module in modules for part in module.modules()]
    try:
        for module in modules:
            module.eval()
        with isolated_rng(seed, device), torch.inference_mode(False), torch.no_grad(), exact_arithmetic(device):
            yield
    finally:
        for part, training in modes:
            part.training = training
