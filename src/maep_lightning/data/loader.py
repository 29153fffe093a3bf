"""Batches of an epoch: their order, their share-out over processes, and how they resume."""

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor

from maep_lightning.data.registry import LabelledImages


def stream_seed(*parts: int) -> int:
    """Mix a seed with numbers such as an epoch, so that seed 0 of epoch 1 and seed 1 of epoch 0 share nothing.

    Args:
        parts: Integers of at least 0.

    Returns:
        A seed of 64 bits.
    """
    return int(np.random.SeedSequence(parts).generate_state(1, np.uint64)[0])


class EpochLoader(ABC):
    """Gives out a set of images epoch by epoch, sharded over processes.

    With `drop_last` every process sees the same number of full batches, for training. Without it every image is seen
    exactly once over all processes and none is repeated; processes still have equally many batches, whose sizes differ
    by one at most, so that a collective in a validation step cannot hang. Batch k of all W processes together holds the
    images of batch k of one process with W times the batch size.

    Each iteration is a new epoch with a new order, unless `set_epoch` names another. After `load_state_dict` the next
    iteration goes on behind the last batch that was given out, which is how Lightning resumes inside an epoch.

    Args:
        total: Number of images N.
        batch_size: Images a batch and process.
        shuffle: Whether the order is drawn anew each epoch, from `seed` and the epoch alone.
        drop_last: Whether images that fill no full batch are left out.
        seed: Seed of the orders, at least 0; the same for all processes.
        rank: Number of this process.
        world_size: Number of processes.

    Raises:
        ValueError: If there is not one full batch for each process with `drop_last`, or fewer images than processes
            without.
    """

    batch_sampler = None  # Lightning looks for it wherever there is a sampler

    def __init__(
        self,
        total: int,
        batch_size: int,
        *,
        shuffle: bool = False,
        drop_last: bool = False,
        seed: int = 0,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        needed = batch_size * world_size if drop_last else world_size
        if batch_size < 1 or total < needed:
            raise ValueError(
                f"{total} images cannot give batches of {batch_size} to {world_size} process(es): "
                f"at least {needed} are needed. Use a smaller batch_size, fewer processes or more images."
            )
        self.total, self.batch_size, self.shuffle, self.drop_last = total, batch_size, shuffle, drop_last
        self.seed, self.rank, self.world_size = seed, rank, world_size
        self._epoch, self._position, self._first_batch, self._begun = 0, 0, 0, False

    @abstractmethod
    def fetch(self, batches: list[Tensor]) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """Give out `(B, 3, H, W)` uint8 images, `(B,)` labels and the `(B,)` places of both in the set.

        Args:
            batches: The places of each batch.
        """

    @property
    def sampler(self) -> Self:
        """The loader itself: Lightning announces an epoch by `loader.sampler.set_epoch`."""
        return self

    def set_epoch(self, epoch: int) -> None:
        """Name the epoch of the next iteration."""
        if epoch != self._epoch:
            self._epoch, self._first_batch = epoch, 0
        self._begun = False

    def __len__(self) -> int:
        """Number of batches of this process, the same for all."""
        if self.drop_last:
            return self.total // self.world_size // self.batch_size
        return math.ceil(math.ceil(self.total / self.world_size) / self.batch_size)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """Give out the batches of an epoch, as `fetch` does."""
        if self._begun:
            self._epoch, self._first_batch = self._epoch + 1, 0
        self._begun = True
        first, self._first_batch = self._first_batch, 0
        for number, batch in enumerate(self.fetch(self._batches()[first:]), start=first):
            self._position = number + 1
            yield batch

    def state_dict(self) -> dict[str, int]:
        """Epoch, and the number of its batches given out."""
        return {"epoch": self._epoch, "batches": self._position}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Let the next iteration go on from a `state_dict`; after a finished epoch, with the next one."""
        self._epoch, self._begun = state["epoch"], False
        self._first_batch = self._position = state["batches"]
        if state["batches"] >= len(self):
            self._epoch, self._first_batch, self._position = state["epoch"] + 1, 0, 0

    def _batches(self) -> list[Tensor]:
        order = torch.arange(self.total)
        if self.shuffle:
            generator = torch.Generator().manual_seed(stream_seed(self.seed, self._epoch))
            order = torch.randperm(self.total, generator=generator)
        own = order[self.rank :: self.world_size]
        if self.drop_last:
            return list(own[: len(self) * self.batch_size].view(-1, self.batch_size))
        return [batch for batch in own.tensor_split(len(self)) if len(batch)]


class ImageLoader(EpochLoader):
    """Slices a set that is one tensor.

    Args:
        data: The whole set, images `(N, 3, H, W)` uint8.
        batch_size: Images a batch and process.
        device: Where the set is moved when iteration begins; where it lies if None.
        options: Those of `EpochLoader`.
    """

    def __init__(
        self, data: LabelledImages, batch_size: int, *, device: torch.device | None = None, **options: Any
    ) -> None:
        super().__init__(len(data.labels), batch_size, **options)
        self.data, self.device = data, device

    def fetch(self, batches: list[Tensor]) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """Give out the rows of the tensor, on its device."""
        if self.device is not None and self.data.images.device != self.device:
            self.data = LabelledImages(self.data.images.to(self.device), self.data.labels.to(self.device))
        for places in batches:
            places = places.to(self.data.images.device)
            yield *self.data.take(places), places
