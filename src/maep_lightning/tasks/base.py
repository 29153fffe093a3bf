"""What every training stage shares: the optimiser, its schedule and the file it leaves."""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.callbacks import EMAWeightAveraging, WeightAveraging
from torch import Tensor, nn

from maep_lightning.data.loader import stream_seed
from maep_lightning.models.parallel import checkpoint_gradients, shard

# Set the streams apart from those of the data, which may have the same seed, and from each other.
_NOISE = 0x6E6F697365
_PROCESS = 0x70726F63


@dataclass
class Optimization:
    """AdamW with the learning-rate rule and the schedule of masked autoencoders.

    Args:
        base_lr: Learning rate for an effective batch of 256; the rate used is `base_lr * effective_batch / 256`, where
            the effective batch counts all devices and accumulated batches.
        weight_decay: Decay of matrices; vectors (biases, norms) are not decayed.
        beta2: Second-moment decay of AdamW; the first is 0.9.
        warmup: Share of all steps in which the rate rises linearly, before a cosine takes it down.
        min_lr_ratio: Share of the rate that the cosine ends at: 0 lets it fall to nothing, 1 keeps it, which is for
            averaged weights.
        gradient_checkpointing: Whether the autoencoder's blocks compute their activations again in the backward pass
            instead of keeping them: the same gradients, less memory, more time.

    Raises:
        ValueError: If a share is none.
    """

    base_lr: float = 1e-3
    weight_decay: float = 0.05
    beta2: float = 0.95
    warmup: float = 0.05
    min_lr_ratio: float = 0.0
    gradient_checkpointing: bool = False

    def __post_init__(self) -> None:
        for name, share in (("warmup", self.warmup), ("min_lr_ratio", self.min_lr_ratio)):
            if not 0 <= share <= 1:
                raise ValueError(f"{name} is a share, from 0 to 1, not {share}.")


def cosine_with_warmup(step: int, steps: int, warmup: float, floor: float = 0.0) -> float:
    """The factor of the learning rate at a step.

    Args:
        step: Step, from 0.
        steps: Number of all steps.
        warmup: Share of the steps with a linear rise.
        floor: The factor at the end.

    Returns:
        A factor in [0, 1].
    """
    rise = max(1, round(warmup * steps))
    if step < rise:
        return (step + 1) / rise
    progress = min(1.0, (step - rise) / max(1, steps - rise))
    return floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * progress))


class Task(LightningModule):
    """A training stage.

    A subclass sets up its networks, implements `training_step` and `validation_step`, and says in `export` what file
    the next stage reads.

    Args:
        optimization: The optimiser's settings.

    Attributes:
        needs_labels: Whether images without classes are refused.
    """

    needs_labels: bool = True

    def __init__(self, optimization: Optimization | None) -> None:
        super().__init__()
        self.optimization = optimization or Optimization()
        self._seed = torch.initial_seed()

    def trained(self) -> nn.Module:
        """The module whose parameters with `requires_grad` are trained."""
        raise NotImplementedError

    def export(self, path: Path, provenance: dict[str, Any]) -> None:
        """Write what the next stage reads; called on every process, of which the first one writes.

        Args:
            path: A safetensors file.
            provenance: What made it.
        """
        raise NotImplementedError

    def configure_model(self) -> None:
        """Switch gradient checkpointing on, and shard the trained network where the strategy brings a device mesh.

        Raises:
            ValueError: If the trained network is none for either, the mesh asks for tensor parallelism, or weights that
                are to be sharded are to be averaged too.
        """
        if self.optimization.gradient_checkpointing:
            checkpoint_gradients(self.trained())
        if self.device_mesh is not None:
            if self.device_mesh["tensor_parallel"].size() > 1:
                raise ValueError(
                    "ModelParallelStrategy would split layers over processes, which is not built here. Shard instead: "
                    f"--trainer.strategy.data_parallel_size {self.device_mesh.size()} "
                    "--trainer.strategy.tensor_parallel_size 1."
                )
            if any(isinstance(callback, WeightAveraging) for callback in self.trainer.callbacks):  # type: ignore[attr-defined]
                raise ValueError(
                    "An average of the weights cannot be kept where FSDP shards them: leave ema.yaml, or the callback "
                    "EMAWeightAveraging, out."
                )
            shard(self.trained(), self.device_mesh["data_parallel"])
            # The strategy reads a checkpoint itself, before `on_load_checkpoint` can add what was left out of it.
            self.strict_loading = False

    def on_fit_start(self) -> None:
        """Lay the weights out channels-last, in which convolutions run fastest on CPU and GPU alike.

        Raises:
            ValueError: If weights are to be averaged from a step on that this training does not reach.
        """
        for callback in self.trainer.callbacks:  # type: ignore[attr-defined]
            if isinstance(callback, EMAWeightAveraging):
                first, steps = callback.update_starting_at_step or 0, self.trainer.estimated_stepping_batches
                if first >= steps:
                    raise ValueError(
                        f"The average of the weights begins at step {first} and this training ends after {steps}: what"
                        " it leaves would be untrained. Leave ema.yaml out, or train longer."
                    )
        self._seed = torch.initial_seed()
        if self.device_mesh is None:  # shards are one-dimensional pieces
            self.to(memory_format=torch.channels_last)

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        """Give each process and step its own random numbers, those of an unbroken run after a resumption too."""
        step = self.trainer.fit_loop.total_batch_idx
        torch.manual_seed(stream_seed(_PROCESS, self._seed, step, self.trainer.global_rank))

    def effective_batch(self) -> int:
        """Images that one optimiser step sees, over all devices and accumulated batches."""
        batch: int = self.trainer.datamodule.batch_size  # type: ignore[attr-defined]
        return batch * self.trainer.world_size * self.trainer.accumulate_grad_batches

    def shared_noise(self, rows: int, columns: int) -> Tensor:
        """Uniform random numbers of this training step, which depend on seed and step, not on the number of processes.

        Every process draws those of the whole batch and takes its own, of the rows that the data's loaders give it:
        row i of process r is number `i * processes + r`.

        Args:
            rows: Samples B of this process.
            columns: Numbers a sample.

        Returns:
            `(B, columns)` in [0, 1), on the task's device.
        """
        processes, step = self.trainer.world_size, self.trainer.fit_loop.total_batch_idx
        generator = torch.Generator(self.device).manual_seed(stream_seed(_NOISE, self._seed, step))
        whole = torch.rand(rows * processes, columns, device=self.device, generator=generator)
        return whole[self.trainer.global_rank :: processes]

    def configure_optimizers(self) -> Any:
        """AdamW in two groups (decayed matrices, free vectors) and a cosine schedule with warm-up, step by step."""
        settings = self.optimization
        parameters = [p for p in self.trained().parameters() if p.requires_grad]
        groups = [
            {"name": "decay", "params": [p for p in parameters if p.ndim > 1], "weight_decay": settings.weight_decay},
            {"name": "no_decay", "params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
        ]
        lr = settings.base_lr * self.effective_batch() / 256
        optimizer = torch.optim.AdamW([g for g in groups if g["params"]], lr=lr, betas=(0.9, settings.beta2))
        if math.isinf(self.trainer.estimated_stepping_batches):
            raise ValueError("The learning rate falls until the last step, so the training needs one: set max_epochs.")
        steps = int(self.trainer.estimated_stepping_batches)
        schedule = torch.optim.lr_scheduler.LambdaLR(
            optimizer, lambda step: cosine_with_warmup(step, steps, settings.warmup, settings.min_lr_ratio)
        )
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step", "name": "lr"}}

    def log_mean(self, name: str, value: Tensor, batch_size: int) -> None:
        """Log the mean over a validation epoch, weighted by batch size and over all processes."""
        self.log(name, value, on_step=False, on_epoch=True, sync_dist=True, batch_size=batch_size)
