import pytest
import torch
from timm.data import ImageNetInfo
from torchvision import datasets
from torchvision.datasets import Imagenette
from torchvision.datasets.imagenet import ARCHIVE_META
from torchvision.models import ResNet50_Weights

from maep_lightning.data import CIFAR10, CIFAR100, IMAGENET, IMAGENETTE, TINY_IMAGENET
from maep_lightning.data.imagenet import imagenet_classes, indices_of


@pytest.mark.oracle
def test_classes__order_is_that_of_timm_and_names_are_those_of_torchvision():
    classes = imagenet_classes()
    assert [item.wnid for item in classes] == ImageNetInfo("imagenet-1k").label_names()
    assert [item.name for item in classes] == ResNet50_Weights.IMAGENET1K_V1.meta["categories"]


@pytest.mark.oracle
def test_imagenette__classes_are_those_of_torchvision():
    assert list(IMAGENETTE.loader.classes) == sorted(Imagenette._WNID_TO_CLASS)
    assert IMAGENETTE.class_indices == (0, 217, 482, 491, 497, 566, 569, 571, 574, 701)


@pytest.mark.oracle
def test_checksums__are_the_published_ones():
    assert IMAGENET.checksums == dict(ARCHIVE_META.values())
    published = {url.rpartition("/")[2]: md5 for url, md5 in Imagenette._ARCHIVES.values()}
    assert IMAGENETTE.checksums.items() <= published.items()
    for cifar, reader in ((CIFAR10, datasets.CIFAR10), (CIFAR100, datasets.CIFAR100)):
        assert cifar.checksums == {reader.filename: reader.tgz_md5}


@pytest.mark.parametrize("spec", [IMAGENETTE, TINY_IMAGENET], ids=lambda spec: spec.name)
def test_checksums__hold_what_the_fetched_archive_is_checked_against(spec):
    assert spec.loader.md5 == spec.checksums[spec.loader.url.rpartition("/")[2]]


def test_tiny_imagenet__has_200_of_the_thousand():
    indices = TINY_IMAGENET.class_indices
    assert len(set(indices)) == 200
    assert list(indices) == sorted(indices)
    assert [imagenet_classes()[index].name for index in indices] == list(TINY_IMAGENET.class_names)
    assert TINY_IMAGENET.class_names[0] == "goldfish"


def test_indices_of__one_strange_name_makes_none():
    assert indices_of(("n01440764", "n15075141")) == (0, 999)
    assert indices_of(("n01440764", "tench")) is None


def test_imagenet__a_part_of_it_keeps_its_labels(tmp_path, write_photos):
    write_photos(tmp_path / "imagenet" / "val", {"n15075141": 2, "n01443537": 3})
    files = IMAGENET.load("test", tmp_path, False)
    assert torch.bincount(files.labels, minlength=1000)[[1, 999]].tolist() == [3, 2]
    assert all(("n01443537" in str(files.path(i))) == (files.labels[i] == 1) for i in range(5))


def test_tiny_imagenet__both_published_layouts_are_read(tmp_path, write_photos):
    folder = tmp_path / "tiny-imagenet-200"
    write_photos(folder / "train", {"n01443537/images": 3, "n01629819/images": 2})
    (folder / "train" / "n01443537" / "n01443537_boxes.txt").write_text("n01443537_0.JPEG\t0\t10\t63\t58\n")
    write_photos(folder / "val", {"images": 3})
    lines = ["images_2.JPEG\tn01629819\t0\t32\t44\t62", "images_0.JPEG\tn01443537\t52\t55\t57\t59"]
    (folder / "val" / "val_annotations.txt").write_text("\n".join(lines) + "\n")
    (folder / "test" / "images").mkdir(parents=True)
    train, test = (TINY_IMAGENET.load(split, tmp_path, False) for split in ("train", "test"))
    assert train.labels.tolist() == [0, 0, 0, 1, 1]
    assert [test.path(i).name for i in range(2)] == ["images_2.JPEG", "images_0.JPEG"]
    assert test.labels.tolist() == [1, 0]


@pytest.mark.faults
def test_tiny_imagenet__annotations_that_do_not_fit_are_refused(tmp_path, write_photos):
    folder = tmp_path / "tiny-imagenet-200" / "val"
    write_photos(folder, {"images": 1})
    annotations = folder / "val_annotations.txt"
    annotations.write_text("images_0.JPEG\tn99999999\t0\t0\t1\t1\n")
    with pytest.raises(ValueError, match=r"val_annotations\.txt, line 1: 'n99999999' is no class"):
        TINY_IMAGENET.load("test", tmp_path, False)
    annotations.write_text("images_7.JPEG\tn01443537\t0\t0\t1\t1\n")
    with pytest.raises(FileNotFoundError, match=r"names 1 of 1 files.*images_7\.JPEG"):
        TINY_IMAGENET.load("test", tmp_path, False)
