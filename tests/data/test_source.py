import pytest
import torch

from maep_lightning.data import CIFAR10, DatasetSpec, FolderLoader, ImageSource, register
from maep_lightning.data.imagenet import imagenet_classes

TENCH, GOLDFISH, TISSUE = "n01440764", "n01443537", "n15075141"


@pytest.fixture
def imagenette(tmp_path, write_photos):
    write_photos(tmp_path / "imagenette2-320" / "train", {TENCH: 3, "n03888257": 3})
    write_photos(tmp_path / "imagenette2-320" / "val", {TENCH: 1, "n03888257": 2})
    return str(tmp_path)


def test_imagenette__labels_are_imagenets_unless_its_own_are_asked_for(imagenette):
    source = ImageSource("imagenette", imagenette)
    assert sorted(source.load("test").labels.tolist()) == [0, 701, 701]
    assert (len(source.class_names), source.class_names[701]) == (1000, "parachute")
    own = ImageSource("imagenette", imagenette, label_space="own")
    assert sorted(own.load("test").labels.tolist()) == [0, 9, 9]
    assert (len(own.class_names), own.class_names[9]) == (10, "parachute")
    assert own.spec.class_indices[9] == 701


def test_folder__takes_any_classes(photos):
    source = ImageSource("folder", folder=str(photos))
    assert source.class_names == ("a", "b", "c")
    assert source.spec.class_indices is None
    assert source.load("train").labels.tolist() == [0] * 12 + [1] * 10 + [2] * 8
    assert source.title == "photos"


def test_folder__named_by_wordnet_numbers_has_imagenets_labels(tmp_path, write_photos):
    write_photos(tmp_path / "some", {TISSUE: 2, GOLDFISH: 1})
    source = ImageSource("folder", root=str(tmp_path), folder="some")
    assert sorted(source.load("test").labels.tolist()) == [1, 999, 999]
    assert source.class_names == tuple(item.name for item in imagenet_classes())
    own = ImageSource("folder", root=str(tmp_path), folder="some", label_space="own")
    assert own.class_names == ("goldfish", "toilet tissue")
    assert sorted(own.load("test").labels.tolist()) == [0, 1, 1]


def test_folder__with_some_wordnet_numbers_says_that_labels_are_its_own(tmp_path, write_photos):
    write_photos(tmp_path / "some" / "train", {TISSUE: 2, "goldfish": 1, TENCH: 1})
    with pytest.warns(UserWarning, match=r"1 of the 3 class folders of .*train are .*: goldfish\. .*label_space own"):
        assert ImageSource("folder", folder=str(tmp_path / "some")).spec.class_indices is None


@pytest.mark.filterwarnings("error")
def test_folder__with_some_wordnet_numbers_is_fine_where_that_is_meant(tmp_path, write_photos):
    write_photos(tmp_path / "some", {TISSUE: 2, "goldfish": 1})
    assert ImageSource("folder", folder=str(tmp_path / "some"), label_space="own").class_names == ("goldfish", TISSUE)


def test_folder__says_which_class_has_no_images(photos):
    (photos / "train").rename(photos / "Train")
    (photos / "Train" / "__MACOSX").mkdir()
    (photos / "Train" / "new folder").mkdir()
    with pytest.warns(UserWarning, match=r"Train has 1 class folder.* without an image .* read: new folder\. They"):
        assert ImageSource("folder", folder=str(photos)).class_names == ("a", "b", "c", "new folder")


@pytest.mark.parametrize("name", ["train", "Test"])
def test_folder__with_a_class_that_is_named_like_a_split_is_refused(tmp_path, write_photos, name):
    write_photos(tmp_path / "photos", {"bus": 2, "car": 2, name: 2})
    with pytest.raises(
        ValueError, match=rf"has {name} beside other folders with images: bus, car\. .* move all into .*photos/test/"
    ):
        ImageSource("folder", folder=str(tmp_path / "photos"))
    (tmp_path / "all").mkdir()
    (tmp_path / "photos").rename(tmp_path / "all" / "test")
    names = ImageSource("folder", folder=str(tmp_path / "all")).class_names
    assert names == tuple(sorted(["bus", "car", name]))


def test_folder__may_have_folders_without_images_beside_its_splits(photos):
    (photos / "lists").mkdir()
    (photos / "lists" / "few.txt").write_text("a/a_0.JPEG")
    assert ImageSource("folder", folder=str(photos)).class_names == ("a", "b", "c")


def test_folder__may_lack_training_or_test_images_that_are_not_needed(photos, tmp_path):
    assert len(ImageSource("folder", folder=str(photos / "val")).load("test").labels) == 15
    (photos / "val").rename(tmp_path / "elsewhere")
    assert len(ImageSource("folder", folder=str(photos)).load("train").labels) == 30


@pytest.fixture(params=["flat", "single", "both"])
def unlabelled(request, tmp_path, write_photos):
    """Twelve training images without class folders, in a single one, or some so and some so; and a file beside them."""
    train = tmp_path / "photos" / "train"
    write_photos(train, {TENCH: 12})
    for path in sorted((train / TENCH).iterdir())[: {"flat": 12, "single": 0, "both": 7}[request.param]]:
        path.rename(train / path.name)
    if request.param == "flat":
        (train / TENCH).rmdir()
    (train / ".hidden.png").write_bytes(b"left by another system")
    (train / "notes.txt").write_text("no image")
    return tmp_path / "photos"


def test_folder__without_classes_is_read_for_pre_training(unlabelled):
    source = ImageSource("folder", folder=str(unlabelled))
    files = source.load("train")
    assert files.labels.tolist() == [0] * 12
    assert {files.path(i) for i in range(12)} == set((unlabelled / "train").rglob("*.JPEG"))
    assert not source.labelled


def test_folder__without_classes_is_not_tested(unlabelled, write_photos):
    write_photos(unlabelled / "val", {"a": 2, "b": 2})
    with pytest.raises(
        ValueError, match=r"train has no folders of at least two classes.* --data\.init_args\.folder .*val"
    ):
        ImageSource("folder", folder=str(unlabelled)).load("test")
    alone = ImageSource("folder", folder=str(unlabelled / "val"))
    assert alone.labelled
    assert alone.load("test").labels.bincount().tolist() == [2, 2]


def test_folder__without_train_and_classes_says_where_images_go(tmp_path, write_photos):
    write_photos(tmp_path, {"photos": 3})
    with pytest.raises(
        ValueError, match=r"0 sub-folder.* pre-training alone need no class: put them into .*photos/train"
    ):
        ImageSource("folder", folder=str(tmp_path / "photos"))
    (tmp_path / "photos" / "train").mkdir()
    with pytest.raises(FileNotFoundError, match="train holds no image"):
        ImageSource("folder", folder=str(tmp_path / "photos")).load("train")


def test_folder__says_which_classes_of_val_are_not_in_train(tmp_path, write_photos):
    write_photos(tmp_path / "photos" / "train", {"a": 2, "b": 2})
    write_photos(tmp_path / "photos" / "val", {"a": 1, "b": 1, "c": 1, "d": 1})
    with pytest.raises(ValueError, match=r"val has 2 class\(es\) that .*train has not, .* read: c, d\. Add") as caught:
        ImageSource("folder", folder=str(tmp_path / "photos")).load("test")
    assert "data set 'folder'" not in str(caught.value)


def test_image_size__decides_what_is_decoded(photos):
    source = ImageSource("folder", folder=str(photos), image_size=16, crop_pct=0.8)
    assert (source.decoder().resize, source.decoder().crop) == (20, 16)
    assert (source.decoder(training=True).resize, source.decoder(training=True).crop) == (20, 20)
    images, labels = source.test_images(limit=7)
    assert images.shape == (7, 3, 16, 16)
    assert torch.equal(labels, source.load("test").labels[:7])


@pytest.mark.parametrize("dataset", ["imagenet", "imagenette", "folder"])
def test_photographs__are_resized_to_256_and_cropped_to_224(photos, dataset):
    decoder = ImageSource(dataset, folder=str(photos)).decoder()
    assert (decoder.resize, decoder.crop) == (256, 224)


def test_interpolation__decides_what_is_decoded(photos):
    linear, cubic = (
        ImageSource("folder", folder=str(photos), image_size=16, interpolation=kind).test_images(3)
        for kind in ("bilinear", "bicubic")
    )
    assert torch.equal(linear.labels, cubic.labels)
    assert not torch.equal(linear.images, cubic.images)


def test_image_list__chooses_the_test_images(photos, tmp_path):
    (tmp_path / "few.txt").write_text("c/c_0.JPEG\na/a_1.JPEG\n")
    source = ImageSource("folder", folder=str(photos), image_list=str(tmp_path / "few.txt"), image_size=8)
    assert source.title == "photos (few.txt)"
    assert source.test_images().labels.tolist() == [2, 0]


def test_root__falls_back_to_the_environment(imagenette, monkeypatch):
    monkeypatch.setenv("MAEP_DATA_DIR", imagenette)
    assert len(ImageSource("imagenette").load("train").labels) == 6


def test_own_entry__needs_a_spec_and_nothing_else(photos, monkeypatch):
    monkeypatch.setattr("maep_lightning.data.registry._SPECS", {})
    loader = FolderLoader(("photos",), ("a", "b", "c"), "take them.")
    register(DatasetSpec("snaps", 16, ("ant", "bee", "cat"), "CC0", "take them.", loader, val_size=5))
    images, labels = ImageSource("snaps", str(photos.parent)).test_images()
    assert images.shape == (15, 3, 16, 16)
    assert labels.bincount().tolist() == [4, 5, 6]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"dataset": "folder"}, "needs --data.init_args.folder"),
        ({"dataset": "cifar10", "folder": "x"}, "cifar10 is not: leave them out, or choose 'folder'"),
        ({"dataset": "digits", "image_list": "x"}, "for data sets of image files"),
        ({"dataset": "cifar10", "label_space": "imagenet"}, "classes of cifar10 are not ImageNet's"),
        ({"dataset": "imagenette", "label_space": "imagnet"}, "or imagenet, not 'imagnet'. Did you mean 'imagenet'"),
        ({"dataset": "imagenet", "image_size": 0}, "image_size must be at least 1"),
        ({"dataset": "imagenet", "crop_pct": 1.1}, "crop_pct must be above 0 and at most 1, not 1.1"),
        ({"dataset": "imagenet", "interpolation": "bicubik"}, "bilinear or bicubic, not 'bicubik'. Did you mean 'bicu"),
        ({"dataset": "imagenets"}, "Did you mean 'imagenet'"),
    ],
)
def test_unusable_options__are_refused(options, words):
    with pytest.raises(ValueError, match=words):
        ImageSource(**options)


def test_crop_and_interpolation__of_a_set_that_is_no_files_are_refused(fake_cifar10):
    source = ImageSource(CIFAR10.name, str(fake_cifar10.root), crop_pct=0.3)
    with pytest.raises(ValueError, match=r"cifar10 comes as images of 32x32 pixels, .*: leave crop_pct out"):
        source.load("test")
    assert ImageSource(CIFAR10.name, str(fake_cifar10.root), crop_pct=1.0).load("test") is not None
    source = ImageSource(CIFAR10.name, str(fake_cifar10.root), interpolation="bicubic")
    with pytest.raises(ValueError, match="are taken whole: leave interpolation out"):
        source.load("test")


def test_image_size__of_a_set_that_is_no_files_is_refused(fake_cifar10):
    source = ImageSource(CIFAR10.name, str(fake_cifar10.root), image_size=224)
    with pytest.raises(ValueError, match="cifar10 comes as images of 32x32 pixels, not 224"):
        source.load("test")
