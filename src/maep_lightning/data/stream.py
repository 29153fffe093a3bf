"""Batches of a set that lies in files, decoded by worker processes."""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from maep_lightning.data.decoding import Decoder
from maep_lightning.data.loader import EpochLoader
from maep_lightning.data.registry import ImageFiles, LabelledImages

Batch = tuple[Tensor, Tensor, Tensor]


class StreamLoader(EpochLoader):
    """Decodes the files of an epoch ahead of their use.

    What it gives out is what `ImageLoader` gives out of the same files decoded beforehand, whatever the number of
    workers.

    Args:
        files: The whole set.
        decoder: From a file to pixels.
        batch_size: Images a batch and process.
        num_workers: Processes that decode, kept over all epochs; 0 decodes in this one.
        pin_memory: Whether batches lie in page-locked memory, from which a CUDA device copies while it computes.
        options: Those of `EpochLoader`.
    """

    def __init__(
        self,
        files: ImageFiles,
        decoder: Decoder,
        batch_size: int,
        *,
        num_workers: int = 0,
        pin_memory: bool = False,
        **options: Any,
    ) -> None:
        super().__init__(len(files.labels), batch_size, **options)
        self.files = files
        self._queue: list[list[int]] = []
        self._decoded: DataLoader[Batch | str] = DataLoader(
            _Batches(files, decoder),
            batch_size=None,
            sampler=self._queue,
            num_workers=num_workers,
            persistent_workers=num_workers > 0,
            pin_memory=pin_memory,
            # Otherwise each epoch draws a number from the global stream, and masks depend on how images are read.
            generator=torch.Generator(),
        )

    def fetch(self, batches: list[Tensor]) -> Iterator[Batch]:
        """Give out decoded batches, on the CPU.

        Raises:
            ValueError: If a file cannot be decoded.
        """
        self._queue[:] = [places.tolist() for places in batches]
        for batch in self._decoded:
            if isinstance(batch, str):
                raise ValueError(batch)
            images, labels, places = batch
            yield images, labels, places


class _Batches(Dataset[Batch | str]):
    """Whole batches by their places, so that a worker hands over one tensor; a fault as its message.

    An exception that leaves a worker comes back with the worker's traceback as its message.
    """

    def __init__(self, files: ImageFiles, decoder: Decoder) -> None:
        self.files, self.decoder = files, decoder

    def __getitem__(self, places: list[int]) -> Batch | str:
        try:
            images = torch.stack([self.decoder(self.files.path(place)) for place in places])
        except ValueError as error:
            return str(error)
        where = torch.tensor(places)
        return images, self.files.labels[where], where


def read_all(files: ImageFiles, decoder: Decoder, num_workers: int = 0) -> LabelledImages:
    """Decode a whole set into memory.

    Args:
        files: The set.
        decoder: From a file to pixels.
        num_workers: Processes that decode; 0 decodes in this one.

    Returns:
        Images `(N, 3, crop, crop)` uint8 and labels, in the order of the files.

    Raises:
        ValueError: If a file cannot be decoded.
    """
    images = torch.empty(len(files.labels), 3, decoder.crop, decoder.crop, dtype=torch.uint8)
    for batch, _, places in StreamLoader(files, decoder, 64, num_workers=num_workers):
        images[places] = batch
    return LabelledImages(images, files.labels)
