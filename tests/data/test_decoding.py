import numpy as np
import pytest
import torch
from PIL import Image
from timm.data import create_transform
from torchvision import transforms

from maep_lightning.data.decoding import Decoder, image_suffixes, read_rgb
from maep_lightning.data.folder import ImageFolder


def picture(path, size=(50, 40)):
    pixels = np.random.RandomState(0).randint(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    return path


@pytest.mark.oracle
@pytest.mark.parametrize("size", [(50, 40), (37, 91), (28, 28), (32, 32)])
def test_decoder__does_what_robustbench_does(tmp_path, size):
    path = picture(tmp_path / "x.png", size)
    published = transforms.Compose([transforms.Resize(32), transforms.CenterCrop(28), transforms.ToTensor()])
    with Image.open(path) as image:
        expected = published(image)
    assert torch.equal(Decoder(32, 28)(path).float() / 255, expected)


@pytest.mark.oracle
def test_decoder__bicubic_is_that_of_timm(tmp_path):
    path = picture(tmp_path / "x.png")
    published = create_transform(28, interpolation="bicubic", crop_pct=0.875, mean=(0, 0, 0), std=(1, 1, 1))
    with Image.open(path) as image:
        expected = published(image)
    assert torch.equal(Decoder(32, 28, "bicubic")(path).float() / 255, expected)
    assert not torch.equal(Decoder(32, 28)(path).float() / 255, expected)


def test_decoder__test_square_lies_in_the_middle_of_the_training_square(tmp_path):
    path = picture(tmp_path / "x.png")
    assert torch.equal(Decoder(32, 28)(path), Decoder(32, 32)(path)[:, 2:30, 2:30])


@pytest.mark.parametrize("mode", ["L", "RGBA", "P", "CMYK"])
def test_decoder__other_modes_become_rgb(tmp_path, mode):
    with Image.open(picture(tmp_path / "x.png")) as image:
        image.convert(mode).save(tmp_path / "x.tiff")
    assert Decoder(16, 16)(tmp_path / "x.tiff").shape == (3, 16, 16)


@pytest.mark.faults
def test_read_rgb__bad_files_are_named(tmp_path):
    picture(tmp_path / "cut.png")
    content = (tmp_path / "cut.png").read_bytes()
    (tmp_path / "cut.png").write_bytes(content[: len(content) // 2])
    (tmp_path / "text.jpg").write_text("no image")
    Image.fromarray(np.zeros((32, 32), dtype=np.uint16)).save(tmp_path / "deep.png")
    with pytest.raises(ValueError, match=r"^\S*deep.png has more than 8 bits"):
        read_rgb(tmp_path / "deep.png")
    for name, words in (
        ("cut.png", "is damaged"), ("text.jpg", "is damaged"), ("gone.jpg", "cannot be decoded"), ("deep.png", "8 bits")
    ):  # fmt: skip
        with pytest.raises(ValueError, match=rf"{name}.*{words}"):
            read_rgb(tmp_path / name)


@pytest.mark.faults
@pytest.mark.parametrize("suffix", sorted({".avif", ".dds", ".jpg", ".qoi", ".webp"} & image_suffixes()))
def test_bad_files__of_any_format_are_named(tmp_path, suffix):
    path = picture(tmp_path / f"x{suffix}")
    content = path.read_bytes()
    # An AVIF without the box that says where its pixels are, and the first half of all others.
    path.write_bytes(content.replace(b"iloc", b"free") if suffix == ".avif" else content[: len(content) // 2])
    with pytest.raises(ValueError, match=rf"x{suffix} is damaged"):
        read_rgb(path)
    if suffix == ".avif":
        with pytest.raises(ValueError, match=r"x\.avif cannot be read as an image"):
            ImageFolder(tmp_path, 2)
