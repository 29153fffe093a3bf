"""The one DataModule: a data set by name, kept as one uint8 tensor where it fits, else read from its files."""

from functools import cached_property
from typing import Any

import torch
from lightning.pytorch import LightningDataModule
from torch import Tensor
from torch.utils.data import DataLoader

from maep_lightning.data.augment import check_crop_scale, random_crop, random_resized_crop
from maep_lightning.data.decoding import Interpolation
from maep_lightning.data.folder import ImageFolder
from maep_lightning.data.loader import EpochLoader, ImageLoader, stream_seed
from maep_lightning.data.registry import ImageFiles, LabelledImages, LabelSpace
from maep_lightning.data.source import ImageSource
from maep_lightning.data.splits import balanced_order
from maep_lightning.data.stream import StreamLoader, read_all
from maep_lightning.functional.augment import random_flip

# Fixed, so that runs with other training seeds share one validation split and no held-out image is trained on.
_VAL_SEED = 20_090_408


class ImageDataModule(LightningDataModule):
    """Train, validation and test batches of a registered data set, and a folder of images for `predict`.

    A batch reaches the task as images `(B, 3, H, W)` float32 in [0, 1], labels `(B,)` and places `(B,)` of both in
    `train_set`, `val_set` or `test_set`; in `predict` as images and B paths. Validation images are held out of the
    published training split: class-balanced, and the same for every `seed`.

    Images that lie in files are resized and cut to a square where they are decoded, without any chance in it; training
    squares keep a margin. Flips and crops are drawn image by image on the device, by a stream that depends on `seed`
    and the step alone: a resumed run sees what an unbroken one sees, and two processes see what one sees that has their
    batches together. Sets of files that fit into `memory_gb` are decoded once, others again in every epoch; batches are
    the same.

    Args:
        dataset: Name of a registered data set: `digits`, `cifar10`, `cifar100`, `imagenet`, `imagenette`,
            `tiny-imagenet`, or `folder` for class folders of one's own; or `python:MODULE:NAME`, which imports the
            module that registers NAME.
        root: Folder that holds data sets; if None, the environment variable `MAEP_DATA_DIR`, else `data`.
        batch_size: Training images a batch and process.
        eval_batch_size: Largest validation, test and predict batch of a process.
        val_size: Number of training images held out; if None, the data set's own (5,000 for CIFAR, 200 for digits).
        train_limit: Train on the first N images of a fixed class-balanced order; on all if None.
        test_limit: Test on the first N test images as published, of class folders in a fixed class-balanced order; on
            all if None.
        augment: Whether training images are augmented as far as the data set allows.
        seed: Seed of order and augmentation, at least 0.
        download: Whether a missing data set may be fetched.
        predict_folder: Folder of images for `predict`; each side `image_size` or a multiple of it, unless the task says
            by `takes_any_size` that it takes others.
        num_workers: Processes that decode image files; sets that lie in memory need none.
        folder: The data set's own folder, as it is or below `root`; if None, that of its usual name below `root`.
        image_list: Text file of the test images to take, in order, such as RobustBench's: in each line a path below the
            test split, then a space and the label unless a folder in the path is named after the class; where both are
            there, they must agree.
        image_size: Height and width that images of files are brought to; the data set's own if None.
        crop_pct: Share of the resized image's side that the square in the middle keeps; the data set's own if None.
        crop_scale: Least and largest share of that square's area, with its margin, that a training crop takes; it is
            resized to `image_size`. If None, the data set's own: sets of small images are moved, not scaled.
        label_space: `own` labels count the data set's classes; `imagenet` ones say which of ImageNet's 1000 each is, as
            a classifier of all of them needs it. If None, the data set's own (`imagenet` for Imagenette and for folders
            named by WordNet numbers).
        memory_gb: Decoded sets of at most so many GB are kept in memory.
        interpolation: How images of files are resized: `bilinear` or `bicubic`.

    Attributes:
        image_size: Height and width of an image in pixels.
        class_names: One name a class.
        class_indices: Which of ImageNet's 1000 classes each class of the data set is; None where they are others.

    Raises:
        FileNotFoundError: If the data set `folder` is not where it is said to be.
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
        folder: str | None = None,
        image_list: str | None = None,
        image_size: int | None = None,
        crop_pct: float | None = None,
        crop_scale: tuple[float, float] | None = None,
        label_space: LabelSpace | None = None,
        memory_gb: float = 2.0,
        interpolation: Interpolation = "bilinear",
    ) -> None:
        super().__init__()
        # Not logged: Lightning refuses to log a name, such as seed, that the task holds with another value.
        self.save_hyperparameters(logger=False)
        self.source = ImageSource(dataset, root, folder, image_list, image_size, crop_pct, label_space, interpolation)
        self.spec = self.source.spec
        self.image_size, self.class_indices = self.spec.image_size, self.spec.class_indices
        self.class_names = self.source.class_names
        self.batch_size, self.eval_batch_size, self.seed = batch_size, eval_batch_size, seed
        self.val_size = self.spec.val_size if val_size is None else val_size
        self.train_limit, self.test_limit = train_limit, test_limit
        self.augment, self.download = augment, download
        self.predict_folder, self.num_workers = predict_folder, num_workers
        self.crop_scale = self.spec.crop_scale if crop_scale is None else crop_scale
        if self.crop_scale is not None:
            check_crop_scale(self.crop_scale)
        self.memory_gb = memory_gb
        for name, least in {"batch_size": 1, "eval_batch_size": 1, "val_size": 0, "seed": 0, "num_workers": 0}.items():
            if getattr(self, name) < least:
                raise ValueError(f"{name} must be at least {least}, not {getattr(self, name)}.")
        self._sets: dict[str, LabelledImages | ImageFiles] = {}
        self._generator: torch.Generator | None = None
        self._training: EpochLoader | None = None
        self._resumed: dict[str, int] | None = None

    def __str__(self) -> str:
        """The data set; Lightning's own text, which the command line asks for, makes every loader first."""
        return f"{type(self).__name__} of {self.source.title}"

    @cached_property
    def num_classes(self) -> int:
        """Number of classes.

        Raises:
            AttributeError: If the images have none.
        """
        # An AttributeError, because the command line then links no number to the model.
        if not self.source.labelled:
            raise AttributeError(f"The images of {self.source.title} have no classes: there is no num_classes.")
        return len(self.class_names)

    @property
    def framing(self) -> tuple[int, float, str] | None:
        """How files become images, as `ImageSource.framing` has it."""
        return self.source.framing

    def prepare_data(self) -> None:
        """Fetch the data set if it is missing, on one process of a node."""
        stage = None if self.trainer is None else self.trainer.state.fn
        if stage != "predict":
            self.source.load("train" if stage in ("fit", "validate") else "test", self.download)

    def setup(self, stage: str) -> None:
        """Read, or find, what a stage needs.

        Args:
            stage: `fit`, `validate`, `test` or `predict`.

        Raises:
            ValueError: If the images have no classes and the task does not say by `needs_labels` that it needs none.
        """
        if stage in ("fit", "validate") and not self.source.labelled and self.trainer is not None:
            task = self.trainer.lightning_module
            if getattr(task, "needs_labels", True):
                raise ValueError(
                    f"The training images of {self.source.title} have no classes, which {type(task).__name__} needs: "
                    f"put each into train/CLASS/, of at least two classes. MAEPretraining alone needs none."
                )
        self._training = self._resumed = None
        if stage in ("fit", "validate"):
            self._split("train")
        elif stage == "test":
            self._split("test")

    def train_set(self) -> LabelledImages:
        """Training images `(N, 3, H, W)` uint8 and labels, every prefix class-balanced; of files, with their margin.

        Raises:
            ValueError: If they do not fit into `memory_gb`.
        """
        return self._resident("train")

    @property
    def train_size(self) -> int:
        """Number of training images."""
        return len(self._split("train").labels)

    def val_set(self) -> LabelledImages:
        """Held-out training images `(N, 3, H, W)` uint8 and labels, every prefix class-balanced.

        Raises:
            ValueError: If they do not fit into `memory_gb`.
        """
        return self._resident("val")

    def test_set(self) -> LabelledImages:
        """Test images `(N, 3, H, W)` uint8 and labels, in the order of `test_limit`.

        Raises:
            ValueError: If they do not fit into `memory_gb`.
        """
        return self._resident("test")

    def test_sample(self, n: int) -> LabelledImages:
        """Some test images, evenly spread over the split; a streamed set is not read as a whole for them.

        Args:
            n: Number of images; all of fewer.
        """
        test = self._split("test")
        total = len(test.labels)
        index = torch.linspace(0, total - 1, min(n, total)).round().long()
        return self.source.decoded(test.take(index), self.num_workers)

    def monitor_set(self, n: int) -> LabelledImages:
        """The first `n` validation images, for what is watched during training.

        Args:
            n: Number of images.

        Returns:
            Images `(n, 3, H, W)` uint8 and labels, class-balanced; the same ones in every run.

        Raises:
            ValueError: If the validation split has fewer images.
        """
        val = self._split("val")
        if not 0 < n <= len(val.labels):
            raise ValueError(f"{n} images to monitor were asked of a validation split of {len(val.labels)}.")
        return self.source.decoded(val.take(slice(n)), self.num_workers)

    def train_dataloader(self) -> EpochLoader:
        """Shuffled full batches."""
        overfitting = getattr(self.trainer, "overfit_batches", 0) > 0
        loader = self._training = self._loader("train", self.batch_size, drop_last=True, shuffle=not overfitting)
        if self._resumed is not None:
            loader.load_state_dict(self._resumed)
            self._resumed = None
        return loader

    def state_dict(self) -> dict[str, int]:
        """Where training stands inside its epoch, for a checkpoint; empty outside of training."""
        return {} if self._training is None else self._training.state_dict()

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Let training go on behind the last batch that a checkpoint has seen.

        Lightning restores loaders as well, but none that was made before: as one is wherever a learning-rate schedule
        asks for the number of steps.

        Args:
            state: What `state_dict` returned.
        """
        # Lightning calls this before there is a loader, or, where the strategy shards the weights, after.
        if self._training is None:
            self._resumed = state
        else:
            self._training.load_state_dict(state)

    def val_dataloader(self) -> EpochLoader | list[EpochLoader]:
        """The validation split, each image once over all processes; no loader if `val_size` is 0."""
        return self._loader("val", self.eval_batch_size) if self.val_size else []

    def test_dataloader(self) -> EpochLoader:
        """The test split, each image once over all processes."""
        return self._loader("test", self.eval_batch_size)

    def predict_dataloader(self) -> DataLoader[tuple[Tensor, str]]:
        """The images of `predict_folder`; one at a time where their sizes differ.

        Raises:
            FileNotFoundError: If the folder is missing or holds no image.
            ValueError: If no folder is given, or an image is not usable.
        """
        if self.predict_folder is None:
            raise ValueError("predict needs images: give their folder with --data.init_args.predict_folder.")
        task = None if self.trainer is None else self.trainer.lightning_module
        folder = ImageFolder(self.predict_folder, None if getattr(task, "takes_any_size", False) else self.image_size)
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
        if self.trainer is not None and self.trainer.training:
            images = self._augmented(images) if self.augment else self._centre(images)
        return images.float() / 255, *rest

    def _augmented(self, images: Tensor) -> Tensor:
        assert self.trainer is not None
        shard = self.trainer.global_rank, self.trainer.world_size
        generator = self._step_generator(images.device)
        if self.spec.flip:
            (images,) = random_flip(images, generator=generator, shard=shard)
        if self.crop_scale is not None:
            return random_resized_crop(images, self.image_size, self.crop_scale, generator, shard)
        if self.spec.crop_padding:
            images = random_crop(images, self.spec.crop_padding, generator, shard)
        return self._centre(images)

    def _centre(self, images: Tensor) -> Tensor:
        """What the decoder of test images would have cut out."""
        start = round((images.shape[-1] - self.image_size) / 2)
        return images[..., start : start + self.image_size, start : start + self.image_size]

    def _split(self, name: str) -> LabelledImages | ImageFiles:
        """The images of `train`, `val` or `test`, or where they are."""
        if name in self._sets:
            return self._sets[name]
        if name == "test":
            test = self.source.load("test", self.download)
            self._sets["test"] = test.take(slice(_checked(self.test_limit, len(test.labels), "test")))
        else:
            whole = self.source.load("train", self.download)
            total = len(whole.labels)
            if self.val_size >= total:
                raise ValueError(
                    f"val_size = {self.val_size} leaves nothing to train on: {self.source.title} has {total} training "
                    f"images."
                )
            order = balanced_order(whole.labels, _VAL_SEED)
            rest = order[self.val_size :]
            self._sets["val"] = whole.take(order[: self.val_size])
            self._sets["train"] = whole.take(rest[: _checked(self.train_limit, len(rest), "train")])
        return self._sets[name]

    def _resident(self, name: str) -> LabelledImages:
        data = self._split(name)
        if isinstance(data, ImageFiles):
            if (size := self._gigabytes(name)) > self.memory_gb:
                fewer = "val_size" if name == "val" else f"{name}_limit"
                raise ValueError(
                    f"The {len(data.labels)} {name} images of {self.source.title} take {size:.3g} GB decoded, more "
                    f"than memory_gb = {self.memory_gb:g}: take fewer with {fewer}, or raise memory_gb."
                )
            data = self._sets[name] = read_all(data, self.source.decoder(name == "train"), self.num_workers)
        return data

    def _gigabytes(self, name: str) -> float:
        side = self.source.decoder(name == "train").crop
        return 3 * side * side * len(self._split(name).labels) / 1e9

    def _loader(self, name: str, batch_size: int, drop_last: bool = False, shuffle: bool = False) -> EpochLoader:
        trainer = self.trainer
        device = trainer.strategy.root_device if trainer else None
        shared = {
            "shuffle": shuffle,
            "drop_last": drop_last,
            "seed": self.seed,
            "rank": trainer.global_rank if trainer else 0,
            "world_size": trainer.world_size if trainer else 1,
        }
        data = self._split(name)
        if isinstance(data, LabelledImages) or self._gigabytes(name) <= self.memory_gb:
            return ImageLoader(self._resident(name), batch_size, device=device, **shared)
        return StreamLoader(
            data,
            self.source.decoder(name == "train"),
            batch_size,
            num_workers=self.num_workers,
            pin_memory=device is not None and device.type == "cuda",
            **shared,
        )

    def _step_generator(self, device: torch.device) -> torch.Generator:
        assert self.trainer is not None
        if self._generator is None or self._generator.device != device:
            self._generator = torch.Generator(device)
        step = self.trainer.fit_loop.total_batch_idx + 1
        # The 0 keeps these streams apart from those of the epochs' orders.
        return self._generator.manual_seed(stream_seed(self.seed, 0, step))


def _checked(limit: int | None, available: int, split: str) -> int:
    if limit is not None and not 0 < limit <= available:
        raise ValueError(f"{split}_limit = {limit} is not usable: there are {available} images; leave it out for all.")
    return available if limit is None else limit
