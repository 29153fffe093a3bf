import numpy as np
import pytest
from PIL import Image

from maep_lightning.data.folder import ImageFolder


def picture(path, size=(32, 32), mode="RGB"):
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.RandomState(0).randint(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    Image.fromarray(pixels).convert(mode).save(path)
    return pixels


def test_reads_common_formats_sorted_by_path(tmp_path):
    for name in ("b/2.bmp", "a.png", "b/1.jpg", "c.webp", "d.TIFF", "e.gif"):
        picture(tmp_path / name)
    (tmp_path / "notes.txt").write_text("not an image")
    folder = ImageFolder(tmp_path, 32)
    assert [path.relative_to(tmp_path).as_posix() for path in folder.paths] == [
        "a.png", "b/1.jpg", "b/2.bmp", "c.webp", "d.TIFF", "e.gif",
    ]  # fmt: skip
    assert all(folder[i][0].shape == (3, 32, 32) for i in range(len(folder)))


@pytest.mark.parametrize("name", ["._a.png", ".hidden.png", "@eaDir/a.png", ".cache/a.png", "__MACOSX/a.png"])
def test_hidden_and_left_over_files_are_skipped(tmp_path, name):
    picture(tmp_path / "a.png")
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_bytes(b"left by another system")
    assert ImageFolder(tmp_path, 32).paths == [tmp_path / "a.png"]


def test_pixels_and_path_come_back(tmp_path):
    pixels = picture(tmp_path / "x.png", size=(64, 32))
    image, path = ImageFolder(tmp_path, 32)[0]
    assert path == str(tmp_path / "x.png")
    assert np.array_equal(image.permute(1, 2, 0).numpy(), pixels)


@pytest.mark.parametrize("suffix", ["png", "jpg", "webp", "tiff"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_photos_are_turned_upright(tmp_path, suffix, orientation):
    # Brighter to the right and, less so, to the bottom: each way to hold the camera gives another order of corners.
    upright = np.add.outer(np.arange(32) * 2, np.arange(64) * 3).astype(np.uint8)
    # Which sides of the upright image the first row and column of the stored one are, by the Exif standard.
    stored = {
        1: upright,
        2: upright[:, ::-1],
        3: upright[::-1, ::-1],
        4: upright[::-1],
        5: upright.T,
        6: np.rot90(upright),
        7: upright[::-1, ::-1].T,
        8: np.rot90(upright, -1),
    }[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(np.ascontiguousarray(stored)).convert("RGB").save(tmp_path / f"x.{suffix}", exif=exif)
    folder = ImageFolder(tmp_path, 32)
    assert folder.sizes == [(64, 32)]
    assert np.abs(folder[0][0].numpy().astype(int) - upright).max() <= 8  # JPEG and WebP lose a little


@pytest.mark.faults
@pytest.mark.parametrize("exif", [b"Exif\0\0garbage", b"Exif\0\0MM\0*\0\0\0\x08\0\x05\x01"])
def test_damaged_exif_data_turn_nothing(tmp_path, exif):
    Image.new("RGB", (64, 32)).save(tmp_path / "x.jpg", exif=exif)
    folder = ImageFolder(tmp_path, 32)
    assert folder.sizes == [(64, 32)]
    assert folder[0][0].shape == (3, 32, 64)


def test_transparency_is_dropped_and_the_colour_below_kept(tmp_path):
    Image.new("RGBA", (32, 32), (200, 100, 50, 0)).save(tmp_path / "x.png")
    assert ImageFolder(tmp_path, 32)[0][0].flatten(1).unique(dim=1).flatten().tolist() == [200, 100, 50]


@pytest.mark.parametrize("mode", ["L", "RGBA", "P"])
def test_other_modes_become_rgb(tmp_path, mode):
    picture(tmp_path / "x.png", mode=mode)
    assert ImageFolder(tmp_path, 32)[0][0].shape == (3, 32, 32)


def test_size_that_is_no_multiple_is_refused(tmp_path):
    picture(tmp_path / "x.png", size=(64, 40))
    with pytest.raises(ValueError, match=r"x\.png is 64x40 pixels; both must be 32 or a multiple"):
        ImageFolder(tmp_path, 32)
    with pytest.raises(ValueError, match=r"in tiles with --model\.policy tile .*, or crop or resize it first"):
        ImageFolder(tmp_path, 32)
    assert ImageFolder(tmp_path, None).sizes == [(64, 40)]


def test_more_than_8_bits_are_refused(tmp_path):
    Image.fromarray(np.zeros((32, 32), dtype=np.uint16)).save(tmp_path / "x.png")
    with pytest.raises(ValueError, match="more than 8 bits"):
        ImageFolder(tmp_path, 32)


@pytest.mark.faults
def test_file_that_is_no_image_is_named(tmp_path):
    (tmp_path / "x.png").write_bytes(b"nothing of the kind")
    with pytest.raises(ValueError, match=r"x\.png cannot be read"):
        ImageFolder(tmp_path, 32)


@pytest.mark.faults
def test_truncated_file_is_named(tmp_path):
    picture(tmp_path / "x.png")
    content = (tmp_path / "x.png").read_bytes()
    (tmp_path / "x.png").write_bytes(content[: len(content) // 2])
    folder = ImageFolder(tmp_path, 32)
    with pytest.raises(ValueError, match=r"x\.png is damaged"):
        folder[0]


def test_missing_and_empty_folders(tmp_path):
    with pytest.raises(FileNotFoundError, match="no folder"):
        ImageFolder(tmp_path / "nothing", 32)
    with pytest.raises(FileNotFoundError, match="holds no image"):
        ImageFolder(tmp_path, 32)
