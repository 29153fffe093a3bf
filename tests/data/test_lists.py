import codecs
from pathlib import Path

import pytest

from maep_lightning.data.lists import read_list

CLASSES = ("a", "b", "c")


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
        (
            "a/a_0.JPEG\n\nb/b_0.JPEG\n./a/a_0.JPEG 0\n",
            ValueError,
            r"list\.txt, line 4: \./a/a_0\.JPEG is on line 1 already\. Remove",
        ),
        ('"a/a_0.JPEG" 0\n', FileNotFoundError, "such as .* Quotes are taken as part of the path: leave them out"),
        ('"a/a_0.JPEG"\n', ValueError, "line 1: .* says no class .* Quotes are taken as part of the path"),
        ("'b/a/a_0.JPEG'\n", FileNotFoundError, "such as .* Quotes are taken as part of the path"),
        ("a_0.JPEG,a\n", ValueError, "line 1: .* says no class .* A comma is taken .* before a label put a space"),
        ("a/a_0.JPEG, 0\n", FileNotFoundError, r"such as a/a_0\.JPEG,\. .* A comma is taken as part"),
        ("a\\a_0.JPEG\n", ValueError, "line 1: .* says no class .* A backslash is taken .* write / between"),
        ("a\\a_0.JPEG 0\n", FileNotFoundError, "A backslash is taken as part of a name"),
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


def test_list__a_file_listed_by_two_paths_is_refused(photos, tmp_path, monkeypatch):
    (tmp_path / "list.txt").write_text(f"a/a_0.JPEG\n{photos}/val/a/a_0.JPEG\n")
    monkeypatch.chdir(photos)
    with pytest.raises(ValueError, match=r"list\.txt, line 2: .*a_0\.JPEG is on line 1 already"):
        read_list(tmp_path / "list.txt", Path("val"), CLASSES)


def test_list__may_begin_with_a_byte_order_mark(photos, tmp_path):
    (tmp_path / "list.txt").write_bytes(codecs.BOM_UTF8 + b"b/b_0.JPEG\r\na/a_0.JPEG\r\n")
    assert read_list(tmp_path / "list.txt", photos / "val", CLASSES).labels.tolist() == [1, 0]


@pytest.mark.parametrize("encoding", ["latin-1", "utf-16", "utf-16-le"])
def test_list__of_another_encoding_is_refused(photos, tmp_path, encoding):
    name = "käfer" if encoding == "latin-1" else "beetle"
    (tmp_path / "list.txt").write_text(f"a/{name}.JPEG\n", encoding=encoding)
    with pytest.raises(ValueError, match=r"list\.txt is not UTF-8 text.* Save it as UTF-8; in PowerShell") as caught:
        read_list(tmp_path / "list.txt", photos / "val", CLASSES)
    assert not isinstance(caught.value, UnicodeDecodeError)


@pytest.fixture
def numbered(tmp_path):
    """Class folders 1 to 12, two images in each, and two beside them; the classes as sorted names."""
    for name in (f"{folder}/{file}.png" for folder in (*range(1, 13), ".") for file in "xy"):
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
    assert listed(numbered, "x.png 1", "y.png 0", "10/x.png 1", "10/y.png 10") == ["10", "1", "10", "10"]


def test_list__a_number_that_fits_neither_as_place_nor_as_name_is_refused(numbered):
    with pytest.raises(ValueError, match=r"line 1: .* the folder 2, label 4, .* 3, which is 12, label 3"):
        listed(numbered, "2/x.png 3")
    with pytest.raises(ValueError, match=r"the number 12 is a place, not a name.* from 0 to 11"):
        listed(numbered, "x.png 12")
