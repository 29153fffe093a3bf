import os
from pathlib import Path

import pytest
import torch
from torchvision import datasets

from maep_lightning.data import CIFAR10, CIFAR100


def test_cifar10_is_read_in_published_order(fake_cifar10):
    images, labels = CIFAR10.load("train", fake_cifar10.root, False)
    assert images.shape == (100, 3, 32, 32)
    assert images.is_contiguous()
    second = fake_cifar10.pixels["data_batch_2"]
    assert images[20 + 3, 1, 5, 9] == second[3, 1024 + 5 * 32 + 9]
    assert labels[20:40].tolist() == fake_cifar10.labels["data_batch_2"]
    images, labels = CIFAR10.load("test", fake_cifar10.root, False)
    assert torch.equal(images.flatten(1), torch.from_numpy(fake_cifar10.pixels["test_batch"]))


def test_cifar100_takes_the_fine_labels(fake_cifar100):
    images, labels = CIFAR100.load("train", fake_cifar100.root, False)
    assert images.shape == (200, 3, 32, 32)
    assert labels.tolist() == fake_cifar100.labels["train"]


@pytest.mark.parametrize(("spec", "folder"), [(CIFAR10, "cifar-10-batches-py"), (CIFAR100, "cifar-100-python")])
def test_missing_folder_says_what_to_do(spec, folder, tmp_path):
    with pytest.raises(FileNotFoundError) as caught:
        spec.load("train", tmp_path / "nothing", False)
    message = str(caught.value)
    for part in ("was not found", str(tmp_path / "nothing" / folder), "--data.init_args.root", "MAEP_DATA_DIR"):
        assert part in message
    assert "--data.init_args.download true" in message


@pytest.mark.faults
def test_damaged_file_is_named(fake_cifar10):
    path = fake_cifar10.root / "cifar-10-batches-py" / "data_batch_4"
    content = bytearray(path.read_bytes())
    content[-1000] ^= 1
    path.write_bytes(bytes(content))
    with pytest.raises(ValueError, match="damaged: data_batch_4 differs from the published MD5") as caught:
        CIFAR10.load("test", fake_cifar10.root, False)
    assert "MAEP_DATA_DIR" in str(caught.value)


@pytest.mark.faults
@pytest.mark.parametrize("name", ["test_batch", "batches.meta"])
def test_incomplete_folder_names_the_file(fake_cifar10, name):
    (fake_cifar10.root / "cifar-10-batches-py" / name).unlink()
    with pytest.raises(FileNotFoundError, match=f"incomplete: {name} is missing"):
        CIFAR10.load("train", fake_cifar10.root, False)


def test_inside_of_the_folder_is_recognised(fake_cifar10):
    with pytest.raises(FileNotFoundError, match=r"inside of the CIFAR10 folder.*holds it"):
        CIFAR10.load("train", fake_cifar10.root / "cifar-10-batches-py", False)


@pytest.mark.faults
def test_failed_download_says_so(tmp_path, monkeypatch):
    def no_network(self):
        raise OSError("no route to host")

    monkeypatch.setattr(datasets.CIFAR10, "download", no_network)
    with pytest.raises(FileNotFoundError, match="download failed: no route to host") as caught:
        CIFAR10.load("train", tmp_path, True)
    assert "allow the download" not in str(caught.value)


REAL = Path(os.environ.get("MAEP_DATA_DIR", "nowhere"))


@pytest.mark.skipif(not (REAL / "cifar-10-batches-py").is_dir(), reason="MAEP_DATA_DIR holds no CIFAR-10")
def test_real_cifar10():
    train, test = CIFAR10.load("train", REAL, False), CIFAR10.load("test", REAL, False)
    assert torch.bincount(train.labels).tolist() == [5000] * 10
    assert torch.bincount(test.labels).tolist() == [1000] * 10
    mean = train.images.float().mean(dim=(0, 2, 3)) / 255
    torch.testing.assert_close(mean, torch.tensor([0.4914, 0.4822, 0.4465]), atol=1e-4, rtol=0)
    assert [CIFAR10.class_names[label] for label in test.labels[:5]] == ["cat", "ship", "ship", "airplane", "frog"]
