import hashlib
import shutil
import tarfile
from pathlib import Path

import pytest
import torch
from torchvision import datasets

from maep_lightning.data.layouts import FolderLoader, scan

CLASSES = ("a", "b", "c")


def loader(**changes):
    return FolderLoader(**({"folders": ("photos",), "classes": CLASSES, "how_to_get": "take them."} | changes))


def names(files):
    return [files.path(i).relative_to(files.root).as_posix() for i in range(len(files.labels))]


@pytest.mark.oracle
def test_train__is_what_torchvision_finds(photos):
    files = loader()("train", photos.parent, False)
    expected = datasets.ImageFolder(str(photos / "train")).samples
    assert [(str(files.path(i)), int(files.labels[i])) for i in range(30)] == expected


@pytest.mark.oracle
def test_test__holds_what_torchvision_finds_with_every_prefix_balanced(photos):
    files, again = (loader()("test", photos.parent, False) for _ in range(2))
    expected = datasets.ImageFolder(str(photos / "val")).samples
    assert sorted((str(files.path(i)), int(files.labels[i])) for i in range(15)) == expected
    assert names(files) == names(again)
    for length in range(1, 16):
        counts = torch.bincount(files.labels[:length], minlength=3)
        assert (counts - torch.tensor([4, 5, 6]) * length / 15).abs().max() <= 1


def test_take__keeps_names_and_labels_together(photos):
    files = loader()("train", photos.parent, False)
    part = files.take(torch.tensor([29, 3, 14]))
    assert names(part) == [names(files)[i] for i in (29, 3, 14)]
    assert part.labels.tolist() == [2, 0, 1]


def test_test__may_be_called_test_or_be_the_whole_folder(photos, tmp_path):
    expected = names(loader()("test", tmp_path, False))
    (photos / "val").rename(photos / "test")
    assert names(loader()("test", tmp_path, False)) == expected
    assert names(loader(folder=photos / "test")("test", tmp_path, False)) == expected


def test_splits__that_are_missing_are_said(photos, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"val has no train/.*train/CLASS/"):
        loader(folder=photos / "val")("train", tmp_path, False)
    shutil.rmtree(photos / "val")
    with pytest.raises(FileNotFoundError, match=r"photos has train/, but neither val/ nor test/"):
        loader()("test", tmp_path, False)


def test_folder__may_be_below_the_root(photos, tmp_path):
    assert len(loader(folder=Path("photos"))("train", tmp_path, False).labels) == 30
    with pytest.raises(FileNotFoundError, match=r"no folder .*nowhere nor .*nowhere: set --data\.init_args\.folder"):
        loader(folder=Path("nowhere"))("train", tmp_path, False)


def test_missing__says_what_to_do(tmp_path):
    with pytest.raises(FileNotFoundError) as caught:
        loader()("train", tmp_path / "nothing", False)
    for part in (str(tmp_path / "nothing" / "photos"), "--data.init_args.root", "MAEP_DATA_DIR", "take them."):
        assert part in str(caught.value)


def test_folders__the_first_that_is_there_is_read(photos, tmp_path):
    assert len(loader(folders=("better", "photos"))("train", tmp_path, False).labels) == 30


def packed(photos, root):
    """The folder as an archive, gone from where it was; and the archive's checksum."""
    root.mkdir()
    archive = root / "photos.tgz"
    with tarfile.open(archive, "w:gz") as file:
        file.add(photos, "photos")
    shutil.rmtree(photos)
    return hashlib.md5(archive.read_bytes()).hexdigest()


def test_download__an_archive_that_is_there_is_checked_and_unpacked(photos, tmp_path):
    md5 = packed(photos, tmp_path / "root")
    files = loader(url="http://localhost:9/photos.tgz", md5=md5)("train", tmp_path / "root", True)
    assert len(files.labels) == 30
    assert sorted(entry.name for entry in (tmp_path / "root").iterdir()) == ["photos", "photos.tgz"]


@pytest.mark.faults
def test_download__a_damaged_archive_is_not_unpacked(photos, tmp_path):
    md5 = packed(photos, tmp_path / "root")
    with (tmp_path / "root" / "photos.tgz").open("ab") as file:
        file.write(b"more")
    with pytest.raises(FileNotFoundError, match=r"no folder .*photos\. Its download failed: .*How to get it"):
        loader(url="http://localhost:9/photos.tgz", md5=md5)("train", tmp_path / "root", True)
    assert not (tmp_path / "root" / "photos").exists()


def test_scan__absent_classes_keep_their_labels(photos):
    shutil.rmtree(photos / "val" / "b")
    assert set(scan(photos / "val", CLASSES).labels.tolist()) == {0, 2}


def test_scan__hidden_and_other_files_are_left_out(photos):
    (photos / "val" / "a" / "._a_0.JPEG").write_bytes(b"left by another system")
    (photos / "val" / "a" / "notes.txt").write_text("no image")
    (photos / "val" / ".cache").mkdir()
    shutil.copytree(photos / "val" / "b", photos / "val" / "a" / ".ipynb_checkpoints")
    (photos / "val" / "a" / "up").symlink_to("..")
    assert len(scan(photos / "val", CLASSES).labels) == 15


@pytest.mark.parametrize("name", ["__MACOSX", "@eaDir", ".ipynb_checkpoints"])
def test_scan__folders_that_systems_leave_are_no_classes(photos, name):
    shutil.copytree(photos / "val" / "b", photos / "val" / name)
    assert len(scan(photos / "val", CLASSES).labels) == 15


def test_scan__a_class_without_images_that_can_be_read_is_said(photos):
    for path in (photos / "val" / "b").iterdir():
        path.rename(path.with_suffix(".HEIC"))
    with pytest.warns(UserWarning, match=r"val has 1 class folder.* read, but files that end in \.HEIC: b\. .*PNG"):
        assert set(scan(photos / "val", CLASSES).labels.tolist()) == {0, 2}


@pytest.mark.parametrize(("train", "test"), [("Train", "Val"), ("TRAIN", "valid"), ("train", "Validation")])
def test_splits__may_be_named_in_other_ways(photos, tmp_path, train, test):
    expected = [names(loader()(split, tmp_path, False)) for split in ("train", "test")]
    (photos / "train").rename(photos / train)
    (photos / "val").rename(photos / test)
    assert [names(loader()(split, tmp_path, False)) for split in ("train", "test")] == expected


def test_scan__unusable_folders_are_refused(photos, tmp_path):
    with pytest.raises(ValueError, match=r"1 sub-folder\(s\) that are no class, such as c; the 2 classes are a, b"):
        scan(photos / "val", ("a", "b"))
    with pytest.raises(ValueError, match=r"a has 0 sub-folder\(s\).*folder named after its class"):
        scan(photos / "val" / "a", CLASSES)
    for name in ("a", "b"):
        (tmp_path / "empty" / name).mkdir(parents=True)
    with pytest.raises(FileNotFoundError, match="empty holds no image"):
        scan(tmp_path / "empty", CLASSES)
    shutil.copy(photos / "val" / "a" / "a_0.JPEG", tmp_path / "empty" / "a")
    with pytest.raises(ValueError, match="are of one class, a; two are needed"):
        scan(tmp_path / "empty", CLASSES)


def test_list__order_and_every_way_to_name_a_class(photos, tmp_path):
    for name in ("flat one.JPEG", "flat two.JPEG"):
        shutil.copy(photos / "val" / "a" / "a_0.JPEG", photos / "val" / name)
    lines = ["# chosen by hand", "c/c_1.JPEG", "", "a/a_0.JPEG 0", "flat one.JPEG c", "flat two.JPEG\t0", "b/b_2.JPEG"]
    (tmp_path / "list.txt").write_text("\n".join(lines))
    files = loader(image_list=tmp_path / "list.txt")("test", tmp_path, False)
    assert names(files) == ["c/c_1.JPEG", "a/a_0.JPEG", "flat one.JPEG", "flat two.JPEG", "b/b_2.JPEG"]
    assert files.labels.tolist() == [2, 0, 2, 0, 1]
    assert len(loader(image_list=tmp_path / "list.txt")("train", tmp_path, False).labels) == 30
