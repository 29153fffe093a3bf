import pytest

from maep_lightning.data.listing import image_paths


@pytest.fixture
def place(tmp_path):
    for name in ("cat/1.png", "cat/more/2.JPG", "cat/notes.txt", "dog/3.png"):
        (tmp_path / "photos" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "photos" / name).touch()
    return tmp_path / "photos"


def test_images_are_found_at_any_depth(place):
    assert image_paths(place) == ["cat/1.png", "cat/more/2.JPG", "dog/3.png"]
    assert image_paths(place / "cat") == ["1.png", "more/2.JPG"]


@pytest.mark.parametrize("name", [".ipynb_checkpoints/1.png", "@eaDir/1.png/thumb.jpg", "__MACOSX/1.png", "._1.png"])
def test_what_systems_leave_is_left_out(place, name):
    (place / "cat" / "more" / name).parent.mkdir(parents=True, exist_ok=True)
    (place / "cat" / "more" / name).touch()
    assert image_paths(place / "cat") == ["1.png", "more/2.JPG"]


@pytest.mark.parametrize("target", [".", "..", "../..", "more"])
def test_links_that_lead_back_are_not_entered(place, target):
    (place / "cat" / "again").symlink_to(target)
    assert image_paths(place / "cat") == ["1.png", "more/2.JPG"]


def test_links_that_lead_back_are_not_entered_from_a_link(place, tmp_path):
    (place / "cat").rename(tmp_path / "cats")
    (place / "cat").symlink_to("../cats")
    (tmp_path / "cats" / "back").symlink_to(place)
    assert image_paths(place / "cat") == ["1.png", "more/2.JPG"]
    (tmp_path / "cats" / "all").symlink_to(tmp_path)
    assert image_paths(place / "cat") == ["1.png", "more/2.JPG"]


def test_links_to_other_places_are_followed(place, tmp_path):
    (tmp_path / "store").mkdir()
    (place / "dog" / "3.png").rename(tmp_path / "store" / "3.png")
    (place / "dog" / "linked").symlink_to(tmp_path / "store")
    assert image_paths(place) == ["cat/1.png", "cat/more/2.JPG", "dog/linked/3.png"]
