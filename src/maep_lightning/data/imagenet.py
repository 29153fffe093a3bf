"""ImageNet's thousand classes, and the data sets that take theirs from it."""

from functools import cache
from importlib.resources import files
from typing import NamedTuple

from maep_lightning.data.layouts import FolderLoader
from maep_lightning.data.registry import DatasetSpec, register


class ImageNetClass(NamedTuple):
    """One of the thousand classes of ILSVRC 2012.

    Attributes:
        wnid: WordNet number, such as `n01440764`; the classes are in its order.
        name: Name as torchvision writes it.
        subset: The smaller data set that has this class too, or empty.
    """

    wnid: str
    name: str
    subset: str


@cache
def imagenet_classes() -> tuple[ImageNetClass, ...]:
    """The thousand classes in the order of every ImageNet classifier's outputs."""
    lines = files(__package__).joinpath("imagenet_classes.tsv").read_text(encoding="utf-8").splitlines()
    return tuple(ImageNetClass(*[*line.split("\t"), ""][:3]) for line in lines)


def indices_of(wnids: tuple[str, ...]) -> tuple[int, ...] | None:
    """The places of classes among the thousand.

    Args:
        wnids: WordNet numbers.

    Returns:
        One index for each, or None where one is none of the thousand.
    """
    place = {item.wnid: index for index, item in enumerate(imagenet_classes())}
    return tuple(place[wnid] for wnid in wnids) if set(wnids) <= set(place) else None


_TERMS = "ImageNet's terms of access: non-commercial research and education (https://image-net.org/download)"

_IMAGENET = (
    "register at https://image-net.org, put ILSVRC2012_img_train.tar (138 GB), ILSVRC2012_img_val.tar (6 GB) and "
    "ILSVRC2012_devkit_t12.tar.gz into imagenet/, and let torchvision.datasets.ImageNet('imagenet', split) check and "
    "unpack them for the splits 'train' and 'val'."
)
IMAGENET = register(
    DatasetSpec(
        name="imagenet",
        image_size=224,
        class_names=tuple(item.name for item in imagenet_classes()),
        licence=_TERMS,
        how_to_get=_IMAGENET,
        loader=FolderLoader(("imagenet",), tuple(item.wnid for item in imagenet_classes()), _IMAGENET),
        val_size=2_000,
        crop_scale=(0.2, 1.0),
        crop_pct=0.875,
        class_indices=tuple(range(1000)),
        label_space="imagenet",
        checksums={
            "ILSVRC2012_img_train.tar": "1d675b47d978889d74fa0da5fadfb00e",
            "ILSVRC2012_img_val.tar": "29b22e2961454d5413ddabcf34fc5622",
            "ILSVRC2012_devkit_t12.tar.gz": "fa75699e90414af021442c21a62c3abf",
        },
    )
)


def _subset(name: str) -> tuple[ImageNetClass, ...]:
    return tuple(item for item in imagenet_classes() if item.subset == name)


_IMAGENETTE = (
    "https://s3.amazonaws.com/fast-ai-imageclas/imagenette2-320.tgz, fetched when download is true, or the full size, "
    "imagenette2.tgz, which is read where the other is not there."
)
_IMAGENETTE_SUMS = {
    "imagenette2-320.tgz": "3df6f0d01a2c9592104656642f5e78a3",
    "imagenette2.tgz": "fe2fc210e6bb7c5664d602c3cd71e612",
}
IMAGENETTE = register(
    DatasetSpec(
        name="imagenette",
        image_size=224,
        class_names=tuple(item.name for item in _subset("imagenette")),
        licence=f"Apache-2.0 (fastai/imagenette); the images, {_TERMS}",
        how_to_get=_IMAGENETTE,
        loader=FolderLoader(
            ("imagenette2-320", "imagenette2"),
            tuple(item.wnid for item in _subset("imagenette")),
            _IMAGENETTE,
            url="https://s3.amazonaws.com/fast-ai-imageclas/imagenette2-320.tgz",
            md5=_IMAGENETTE_SUMS["imagenette2-320.tgz"],
        ),
        val_size=500,
        crop_scale=(0.2, 1.0),
        crop_pct=0.875,
        class_indices=indices_of(tuple(item.wnid for item in _subset("imagenette"))),
        label_space="imagenet",
        checksums=_IMAGENETTE_SUMS,
    )
)

_TINY = "http://cs231n.stanford.edu/tiny-imagenet-200.zip (248 MB), fetched when download is true."
# Published nowhere; it is what the file has had in every loader that checks it.
_TINY_SUMS = {"tiny-imagenet-200.zip": "90528d7ca1a48142e341f4ef8d21d0de"}
TINY_IMAGENET = register(
    DatasetSpec(
        name="tiny-imagenet",
        image_size=64,
        class_names=tuple(item.name for item in _subset("tiny-imagenet")),
        licence=f"None stated by Stanford's CS231n; the images, {_TERMS}",
        how_to_get=_TINY,
        loader=FolderLoader(
            ("tiny-imagenet-200",),
            tuple(item.wnid for item in _subset("tiny-imagenet")),
            _TINY,
            url="http://cs231n.stanford.edu/tiny-imagenet-200.zip",
            md5=_TINY_SUMS["tiny-imagenet-200.zip"],
        ),
        val_size=5_000,
        class_indices=indices_of(tuple(item.wnid for item in _subset("tiny-imagenet"))),
        checksums=_TINY_SUMS,
    )
)
