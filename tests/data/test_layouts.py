import hashlib
import shutil
import tarfile
from pathlib import Path

import pytest
import torch
from torchvision import datasets

from maep_lightning.data.layouts import FolderLoader, read_list, scan

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
    (photos / "val" / "flat one.JPEG").write_bytes((photos / "val" / "a" / "a_0.JPEG").read_bytes())
    lines = ["# chosen by hand", "c/c_1.JPEG", "", "a/a_0.JPEG 0", "flat one.JPEG c", "flat one.JPEG\t0", "b/b_2.JPEG"]
    (tmp_path / "list.txt").write_text("\n".join(lines))
    files = loader(image_list=tmp_path / "list.txt")("test", tmp_path, False)
    assert names(files) == ["c/c_1.JPEG", "a/a_0.JPEG", "flat one.JPEG", "flat one.JPEG", "b/b_2.JPEG"]
    assert files.labels.tolist() == [2, 0, 2, 0, 1]
    assert len(loader(image_list=tmp_path / "list.txt")("train", tmp_path, False).labels) == 30


@pytest.mark.parametrize(
    ("text", "error", "words"),
    [
        (
            "a/a_0.JPEG\na/a_9.JPEG\n",
            FileNotFoundError,
            r"names 1 of 2 files that are not in .*val, such as a/a_9\.JPEG",
        ),
        ("a/a_0.JPEG\nd/x.JPEG\n", ValueError, r"line 2: 'd/x\.JPEG' says no class of the 3"),
        ("a/a_0.JPEG 3\n", ValueError, "line 1: .* has the label 3, which is no class and not from 0 to 2"),
        ("a/a_0.JPEG\td\n", ValueError, "line 1: .* has the label d, which is no class"),
        (
            "c/c_0.JPEG\na/a_0.JPEG 1\n",
            ValueError,
            r"list\.txt, line 2: .* two classes: the folder a, label 0, .* 1, which is b, label 1\. Correct",
        ),
        ("a/a_0.JPEG c\n", ValueError, r"two classes: the folder a, label 0, .* c, which is c, label 2"),
        ("# nothing\n", ValueError, "names no image"),
        (None, FileNotFoundError, r"no list of images .*list\.txt"),
    ],
)
def test_list__faults_are_named(photos, tmp_path, text, error, words):
    if text is not None:
        (tmp_path / "list.txt").write_text(text)
    with pytest.raises(error, match=words):
        read_list(tmp_path / "list.txt", photos / "val", CLASSES)


@pytest.mark.parametrize("linked", [False, True])
def test_list__folders_above_the_data_set_say_no_class(photos, tmp_path, linked):
    place = tmp_path / "c" / "b" / "photos" / "val"
    place.parent.mkdir(parents=True)
    (photos / "val").rename(place)
    above = place
    if linked:
        (tmp_path / "a").symlink_to(place)
        place = tmp_path / "a"
    (tmp_path / "list.txt").write_text(f"{above}/a/a_1.JPEG\n{place}/b/b_0.JPEG 1\n")
    assert read_list(tmp_path / "list.txt", place, CLASSES).labels.tolist() == [0, 1]


@pytest.mark.parametrize("line", ["b/a/a_0.JPEG", "/data/b/elsewhere/a/a_0.JPEG 0"])
def test_list__a_path_with_the_names_of_two_classes_is_refused(photos, tmp_path, line):
    (tmp_path / "list.txt").write_text(line)
    with pytest.raises(
        ValueError, match=r"list\.txt, line 1: .* 2 folders .* named after classes: b, a\. Write the path"
    ):
        read_list(tmp_path / "list.txt", photos / "val", CLASSES)


@pytest.fixture
def numbered(tmp_path):
    """Class folders 1 to 12, an image in each, and one beside them; the classes as sorted names."""
    for name in (*(f"{number}/x.png" for number in range(1, 13)), "x.png"):
        (tmp_path / "val" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "val" / name).touch()
    return tmp_path / "val", tuple(sorted(map(str, range(1, 13))))


def listed(numbered, *lines):
    place, classes = numbered
    path = place.parent / "list.txt"
    path.write_text("\n".join(lines))
    return [classes[label] for label in read_list(path, place, classes).labels.tolist()]


def test_list__folders_named_by_numbers_are_names(numbered):
    assert listed(numbered, "1/x.png", "2/x.png", "12/x.png", "9/x.png") == ["1", "2", "12", "9"]


def test_list__a_number_behind_a_path_is_a_place_unless_the_folder_takes_it_as_a_name(numbered):
    assert listed(numbered, "x.png 1", "x.png 0", "10/x.png 1", "10/x.png 10") == ["10", "1", "10", "10"]


def test_list__a_number_that_fits_neither_as_place_nor_as_name_is_refused(numbered):
    with pytest.raises(ValueError, match=r"line 1: .* the folder 2, label 4, .* 3, which is 12, label 3"):
        listed(numbered, "2/x.png 3")
    with pytest.raises(ValueError, match=r"the number 12 is a place, not a name.* from 0 to 11"):
        listed(numbered, "x.png 12")
