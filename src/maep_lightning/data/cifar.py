"""CIFAR-10 and CIFAR-100 through torchvision, which checks the published MD5 sums."""

from functools import partial
from pathlib import Path
from typing import Any

import torch

from maep_lightning.data.registry import DatasetSpec, LabelledImages, Split, register

_CITATION = "No licence stated; free to use with citation of Krizhevsky, Learning Multiple Layers of Features, 2009."


def load_cifar(class_name: str, split: Split, root: Path, download: bool) -> LabelledImages:
    """Read a split of CIFAR.

    Args:
        class_name: `CIFAR10` or `CIFAR100`, the class of `torchvision.datasets`.
        split: `train` (50,000 images) or `test` (10,000).
        root: Folder that holds `cifar-10-batches-py` or `cifar-100-python`.
        download: Whether a missing or damaged set is fetched from its publisher.

    Returns:
        Images and labels in the published order.

    Raises:
        FileNotFoundError: If the set is missing and is not, or cannot be, fetched.
        ValueError: If a file has not the published MD5 sum and is not, or cannot be, fetched anew.
    """
    # Importing torchvision takes a second, and most commands never reach this line.
    from torchvision import datasets

    dataset_class = getattr(datasets, class_name)
    try:
        dataset = dataset_class(str(root), train=split == "train", download=download)
    except (RuntimeError, OSError) as error:
        raise _explain(dataset_class, root, error if download else None) from error
    images = torch.from_numpy(dataset.data).permute(0, 3, 1, 2).contiguous()
    return LabelledImages(images, torch.tensor(dataset.targets, dtype=torch.int64))


def _explain(dataset_class: Any, root: Path, download_error: Exception | None) -> Exception:
    from torchvision.datasets.utils import check_integrity

    name, folder = dataset_class.__name__, root.absolute() / dataset_class.base_folder
    files = [
        *dataset_class.train_list,
        *dataset_class.test_list,
        [dataset_class.meta["filename"], dataset_class.meta["md5"]],
    ]
    missing = [file for file, _ in files if not (folder / file).is_file()]
    damaged = [file for file, md5 in files if file not in missing and not check_integrity(str(folder / file), md5)]
    if damaged:
        what = f"{name} in {folder} is damaged: {', '.join(damaged)} differs from the published MD5 sum."
    elif folder.is_dir():
        what = f"{name} in {folder} is incomplete: {', '.join(missing)} is missing."
    elif (root / files[0][0]).is_file():
        what = f"{root.absolute()} is the inside of the {name} folder; give the folder that holds it, {folder.name}/."
    else:
        what = f"{name} was not found: there is no folder {folder}."
    if download_error is not None:
        what += f" Its download failed: {download_error}."
    allow = "" if download_error is not None else ", or allow the download with --data.init_args.download true"
    todo = (
        f" Set --data.init_args.root, or the environment variable MAEP_DATA_DIR, to a folder that holds a whole "
        f"{dataset_class.base_folder}/ (unpacked from {dataset_class.url}){allow}."
    )
    return ValueError(what + todo) if damaged else FileNotFoundError(what + todo)


_CIFAR10_NAMES = "airplane automobile bird cat deer dog frog horse ship truck"
_CIFAR100_NAMES = (
    "apple aquarium_fish baby bear beaver bed bee beetle bicycle bottle bowl boy bridge bus butterfly camel can castle "
    "caterpillar cattle chair chimpanzee clock cloud cockroach couch crab crocodile cup dinosaur dolphin elephant "
    "flatfish forest fox girl hamster house kangaroo keyboard lamp lawn_mower leopard lion lizard lobster man "
    "maple_tree motorcycle mountain mouse mushroom oak_tree orange orchid otter palm_tree pear pickup_truck pine_tree "
    "plain plate poppy porcupine possum rabbit raccoon ray road rocket rose sea seal shark shrew skunk skyscraper "
    "snail snake spider squirrel streetcar sunflower sweet_pepper table tank telephone television tiger tractor train "
    "trout tulip turtle wardrobe whale willow_tree wolf woman worm"
)

CIFAR10 = register(
    DatasetSpec(
        name="cifar10",
        image_size=32,
        class_names=tuple(_CIFAR10_NAMES.split()),
        licence=_CITATION,
        how_to_get="https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz (170 MB), fetched when download is true.",
        loader=partial(load_cifar, "CIFAR10"),
        val_size=5_000,
        checksums={"cifar-10-python.tar.gz": "c58f30108f718f92721af3b95e74349a"},
    )
)
CIFAR100 = register(
    DatasetSpec(
        name="cifar100",
        image_size=32,
        class_names=tuple(_CIFAR100_NAMES.split()),
        licence=_CITATION,
        how_to_get="https://www.cs.toronto.edu/~kriz/cifar-100-python.tar.gz (169 MB), fetched when download is true.",
        loader=partial(load_cifar, "CIFAR100"),
        val_size=5_000,
        checksums={"cifar-100-python.tar.gz": "eb9058c3a382ffc7106e4002c42a8d85"},
    )
)
