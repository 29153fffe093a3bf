"""The one DataModule: a data set by name, kept as one uint8 tensor."""

import os
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningDataModule
from torch import Tensor
from torch.utils.data import DataLoader

from maep_lightning.data.augment import random_crop
from maep_lightning.data.folder import ImageFolder
from maep_lightning.data.loader import ImageLoader, stream_seed
from maep_lightning.data.registry import LabelledImages, get_spec
from maep_lightning.data.splits import balanced_order
from maep_lightning.functional.augment import random_flip

# Fixed, so that runs with other training seeds share one validation split and no held-out image is trained on.
_VAL_SEED = 20_090_408


class ImageDataModule(LightningDataModule):
    """Train, validation and test batches of a registered data set, and a folder of images for `predict`.

    A batch reaches the task as images `(B, 3, H, W)` float32 in [0, 1], labels `(B,)` and places `(B,)` of both in
    `train_set`, `val_set` or `test_set`; in `predict` as images and B paths. Validation images are held out of the
    published training split: class-balanced, and the same for every `seed`. Training images are flipped and cropped one
    by one on the device, by a stream that depends on `seed`, the process and the step alone, so that a resumed run sees
    what an unbroken one sees.

    Args:
        dataset: Name of a registered data set: `digits`, `cifar10` or `cifar100`.
        root: Folder that holds data sets; if None, the environment variable `MAEP_DATA_DIR`, else `data`.
        batch_size: Training images a batch and process.
        eval_batch_size: Largest validation, test and predict batch of a process.
        val_size: Number of training images held out; if None, the data set's own (5,000 for CIFAR, 200 for digits).
        train_limit: Train on the first N images of a fixed class-balanced order; on all if None.
        test_limit: Test on the first N test images as published; on all if None.
        augment: Whether training images are augmented as far as the data set allows.
        seed: Seed of order and augmentation, at least 0.
        download: Whether a missing data set may be fetched.
        predict_folder: Folder of images for `predict`; each side `image_size` or a multiple of it.
        num_workers: Processes that decode the images of `predict_folder`; the rest lies in memory.

    Attributes:
        num_classes: Number of classes.
        image_size: Height and width of an image in pixels.
        class_names: One name a class.

    Raises:
        ValueError: If the data set is unknown or a size is not usable.
    """

    def __init__(
        self,
        dataset: str = "digits",
        root: str | None = None,
        batch_size: int = 128,
        eval_batch_size: int = 500,
        val_size: int | None = None,
        train_limit: int | None = None,
        test_limit: int | None = None,
        augment: bool = True,
        seed: int = 0,
        download: bool = True,
        predict_folder: str | None = None,
        num_workers: int = 0,
    ) -> None:
        super().__init__()
        # Not logged: Lightning refuses to log a name, such as seed, that the task holds with another value.
        self.save_hyperparameters(logger=False)
        self.spec = get_spec(dataset)
        self.num_classes, self.image_size = self.spec.num_classes, self.spec.image_size
        self.class_names = self.spec.class_names
        self.root = Path(root or os.environ.get("MAEP_DATA_DIR") or "data").expanduser()
        self.batch_size, self.eval_batch_size, self.seed = batch_size, eval_batch_size, seed
        self.val_size = self.spec.val_size if val_size is None else val_size
        self.train_limit, self.test_limit = train_limit, test_limit
        self.augment, self.download = augment, download
        self.predict_folder, self.num_workers = predict_folder, num_workers
        for name, least in {"batch_size": 1, "eval_batch_size": 1, "val_size": 0, "seed": 0, "num_workers": 0}.items():
            if getattr(self, name) < least:
                raise ValueError(f"{name} must be at least {least}, not {getattr(self, name)}.")
        self._sets: dict[str, LabelledImages] = {}
        self._generator: torch.Generator | None = None

    def prepare_data(self) -> None:
        """Fetch the data set if it is missing, on one process of a node."""
        if self.trainer is None or self.trainer.state.fn != "predict":
            self.spec.load("test", self.root, self.download)

    def setup(self, stage: str) -> None:
        """Read what a stage needs.

        Args:
            stage: `fit`, `validate`, `test` or `predict`.
        """
        if stage in ("fit", "validate"):
            self._read_training_split()
        elif stage == "test":
            self.test_set()

    def train_set(self) -> LabelledImages:
        """Training images `(N, 3, H, W)` uint8 and labels, every prefix class-balanced."""
        self._read_training_split()
        return self._sets["train"]

    @property
    def train_size(self) -> int:
        """Number of training images."""
        return len(self.train_set().labels)

    def val_set(self) -> LabelledImages:
        """Held-out training images `(N, 3, H, W)` uint8 and labels, every prefix class-balanced."""
        self._read_training_split()
        return self._sets["val"]

    def test_set(self) -> LabelledImages:
        """Test images `(N, 3, H, W)` uint8 and labels, in the published order."""
        if "test" not in self._sets:
            test = self.spec.load("test", self.root, self.download)
            self._sets["test"] = test.take(slice(_checked(self.test_limit, len(test.labels), "test")))
        return self._sets["test"]

    def monitor_set(self, n: int) -> LabelledImages:
        """The first `n` validation images, for what is watched during training.

        Args:
            n: Number of images.

        Returns:
            Images `(n, 3, H, W)` uint8 and labels, class-balanced; the same ones in every run.

        Raises:
            ValueError: If the validation split has fewer images.
        """
        val = self.val_set()
        if not 0 < n <= len(val.labels):
            raise ValueError(f"{n} images to monitor were asked of a validation split of {len(val.labels)}.")
        return val.take(slice(n))

    def train_dataloader(self) -> ImageLoader:
        """Shuffled full batches."""
        overfitting = getattr(self.trainer, "overfit_batches", 0) > 0
        return self._loader(self.train_set(), self.batch_size, training=True, shuffle=not overfitting)

    def val_dataloader(self) -> ImageLoader | list[ImageLoader]:
        """The validation split, each image once over all processes; no loader if `val_size` is 0."""
        return self._loader(self.val_set(), self.eval_batch_size) if self.val_size else []

    def test_dataloader(self) -> ImageLoader:
        """The test split, each image once over all processes."""
        return self._loader(self.test_set(), self.eval_batch_size)

    def predict_dataloader(self) -> DataLoader[tuple[Tensor, str]]:
        """The images of `predict_folder`; one at a time where their sizes differ.

        Raises:
            FileNotFoundError: If the folder is missing or holds no image.
            ValueError: If no folder is given, or an image is not usable.
        """
        if self.predict_folder is None:
            raise ValueError("predict needs images: give their folder with --data.init_args.predict_folder.")
        folder = ImageFolder(self.predict_folder, self.image_size)
        batch_size = self.eval_batch_size if len(set(folder.sizes)) == 1 else 1
        return DataLoader(folder, batch_size=batch_size, num_workers=self.num_workers)

    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> tuple[Any, ...]:
        """Augment training images on their device, and bring pixels to float32 in [0, 1].

        Args:
            batch: Images `(B, 3, H, W)` uint8, and what belongs to them.
            dataloader_idx: Number of the loader.

        Returns:
            Images `(B, 3, H, W)` float32 in [0, 1], and the rest unchanged.
        """
        images, *rest = batch
        if self.augment and self.trainer is not None and self.trainer.training:
            generator = self._step_generator(images.device)
            if self.spec.flip:
                (images,) = random_flip(images, generator=generator)
            if self.spec.crop_padding:
                images = random_crop(images, self.spec.crop_padding, generator)
        return images.float() / 255, *rest

    def _read_training_split(self) -> None:
        if "train" in self._sets:
            return
        whole = self.spec.load("train", self.root, self.download)
        total = len(whole.labels)
        if self.val_size >= total:
            raise ValueError(
                f"val_size = {self.val_size} leaves nothing to train on: {self.spec.name} has {total} training images."
            )
        order = balanced_order(whole.labels, _VAL_SEED)
        rest = order[self.val_size :]
        self._sets["val"] = whole.take(order[: self.val_size])
        self._sets["train"] = whole.take(rest[: _checked(self.train_limit, len(rest), "train")])

    def _loader(
        self, data: LabelledImages, batch_size: int, training: bool = False, shuffle: bool = False
    ) -> ImageLoader:
        trainer = self.trainer
        return ImageLoader(
            data,
            batch_size,
            shuffle=shuffle,
            drop_last=training,
            seed=self.seed,
            rank=trainer.global_rank if trainer else 0,
            world_size=trainer.world_size if trainer else 1,
            device=trainer.strategy.root_device if trainer else None,
        )

    def _step_generator(self, device: torch.device) -> torch.Generator:
        assert self.trainer is not None
        if self._generator is None or self._generator.device != device:
            self._generator = torch.Generator(device)
        step = self.trainer.fit_loop.total_batch_idx + 1
        return self._generator.manual_seed(stream_seed(self.seed, self.trainer.global_rank, step))


def _checked(limit: int | None, available: int, split: str) -> int:
    if limit is not None and not 0 < limit <= available:
        raise ValueError(f"{split}_limit = {limit} is not usable: there are {available} images; leave it out for all.")
    return available if limit is None else limit
