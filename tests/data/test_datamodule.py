import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from PIL import Image

from maep_lightning.data import ImageDataModule, datamodule
from maep_lightning.data.stream import StreamLoader


class Recorder(LightningModule):
    """Keeps a digest of every batch it is given; falls over after so many training batches."""

    def __init__(self, falls_after=None):
        super().__init__()
        self.falls_after = falls_after
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.seen = {"train": [], "val": [], "test": [], "predict": []}

    def record(self, stage, batch):
        images, *rest = batch
        assert images.dtype == torch.float32
        assert 0 <= images.min() <= images.max() <= 1
        self.seen[stage].append((images.sum().item(), [list(part) for part in rest]))

    def training_step(self, batch, batch_idx):
        if len(self.seen["train"]) == self.falls_after:
            raise ConnectionAbortedError
        self.record("train", batch)
        return self.weight * 0

    def validation_step(self, batch, batch_idx):
        self.record("val", batch)

    def test_step(self, batch, batch_idx):
        self.record("test", batch)

    def predict_step(self, batch, batch_idx):
        self.record("predict", batch)

    def configure_optimizers(self):
        steps = self.trainer.estimated_stepping_batches  # as all schedules ask, which makes Lightning build a loader
        optimizer = torch.optim.SGD(self.parameters(), lr=0.1)
        return [optimizer], [torch.optim.lr_scheduler.LinearLR(optimizer, total_iters=steps)]


def trainer(folder, **options):
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "accelerator": "cpu"}
    return Trainer(default_root_dir=folder, **(quiet | {"enable_checkpointing": False} | options))


def digits(**options):
    return ImageDataModule("digits", **({"batch_size": 200, "eval_batch_size": 150} | options))


def bytes_of(images):
    return {image.numpy().tobytes() for image in images}


def test_attributes_come_from_the_data_set():
    data = digits()
    assert (data.num_classes, data.image_size, data.class_names[3]) == (10, 32, "3")


def test_splits_are_disjoint_and_do_not_depend_on_the_seed():
    first, second = digits(seed=0), digits(seed=1)
    train, val, test = (bytes_of(split.images) for split in (first.train_set(), first.val_set(), first.test_set()))
    assert (len(train), len(val), len(test)) == (1200, 200, 397)
    assert not train & val
    assert not (train | val) & test
    assert torch.equal(first.val_set().images, second.val_set().images)
    assert torch.equal(first.train_set().images, second.train_set().images)
    assert torch.bincount(first.val_set().labels).min() >= 19


def test_limits_take_the_first_images():
    whole, limited = digits(), digits(train_limit=100, test_limit=30)
    assert torch.equal(limited.train_set().images, whole.train_set().images[:100])
    assert torch.equal(limited.test_set().images, whole.test_set().images[:30])
    assert limited.train_size == 100
    assert torch.bincount(limited.train_set().labels, minlength=10).min() >= 9


def test_cifar_test_limit_follows_the_published_order(fake_cifar10):
    data = ImageDataModule("cifar10", root=str(fake_cifar10.root), val_size=20, test_limit=7, download=False)
    expected = torch.from_numpy(fake_cifar10.pixels["test_batch"][:7]).view(7, 3, 32, 32)
    assert torch.equal(data.test_set().images, expected)
    assert torch.bincount(data.val_set().labels).tolist() == [2] * 10


def test_root_falls_back_to_the_environment(fake_cifar10, monkeypatch):
    monkeypatch.setenv("MAEP_DATA_DIR", str(fake_cifar10.root))
    assert len(ImageDataModule("cifar10", val_size=10, download=False).test_set().labels) == 20


def test_monitor_set_is_the_head_of_validation():
    data = digits()
    assert torch.equal(data.monitor_set(50).images, data.val_set().images[:50])
    assert torch.bincount(data.monitor_set(50).labels, minlength=10).tolist() == [5] * 10


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"val_size": 1400}, "val_size = 1400 leaves nothing.*1400 training images"),
        ({"train_limit": 1201}, "train_limit = 1201.*1200"),
        ({"train_limit": 0}, "train_limit = 0"),
    ],
)
def test_unusable_training_sizes_are_refused(options, words):
    with pytest.raises(ValueError, match=words):
        digits(**options).setup("fit")


def test_unusable_test_and_monitor_sizes_are_refused():
    with pytest.raises(ValueError, match=r"test_limit = 398.*397"):
        digits(test_limit=398).setup("test")
    with pytest.raises(ValueError, match=r"201 images.*200"):
        digits().monitor_set(201)


@pytest.mark.parametrize("scale", [(1.0, 0.2), (0.0, 1.0), (0.5, 1.5), (0.5,)])
def test_crop_scale_that_is_no_range_is_refused_at_once(scale):
    with pytest.raises(ValueError, match="crop_scale must be two shares of the area in order"):
        digits(crop_scale=scale)


@pytest.mark.parametrize("name", ["batch_size", "eval_batch_size", "val_size", "seed", "num_workers"])
def test_negative_numbers_are_refused(name):
    with pytest.raises(ValueError, match=f"{name} must be at least"):
        digits(**{name: -1})


def test_unknown_data_set_is_refused():
    with pytest.raises(ValueError, match="mean 'digits'"):
        ImageDataModule("digit")


@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_processes_test_each_image_once(world_size):
    seen = []
    for rank in range(world_size):
        data = digits(test_limit=101, eval_batch_size=20)
        strategy = SimpleNamespace(root_device=torch.device("cpu"))
        data.trainer = SimpleNamespace(global_rank=rank, world_size=world_size, strategy=strategy)
        seen += [place for batch in data.test_dataloader() for place in batch[2].tolist()]
    assert sorted(seen) == list(range(101))


def test_lightning_runs_every_stage(tmp_path):
    model, data = Recorder(), digits(test_limit=101)
    run = trainer(tmp_path, max_epochs=2, num_sanity_val_steps=0)
    run.fit(model, datamodule=data)
    run.test(model, datamodule=data, verbose=False)
    epochs = [model.seen["train"][:6], model.seen["train"][6:]]
    assert [len({i for _, (_, places) in epoch for i in map(int, places)}) for epoch in epochs] == [1200, 1200]
    assert epochs[0][0][1] != epochs[1][0][1]
    assert model.seen["val"][:2] == model.seen["val"][2:]
    test = data.test_set()
    assert sum(total for total, _ in model.seen["test"]) == pytest.approx(test.images.float().sum().item() / 255)


def test_only_training_images_are_augmented(tmp_path):
    for augment, same in ((True, False), (False, True)):
        model, data = Recorder(), digits(augment=augment)
        trainer(tmp_path, max_epochs=1).fit(model, datamodule=data)
        for stage, split in (("train", data.train_set()), ("val", data.val_set())):
            matches = [
                total == pytest.approx(split.images[[int(i) for i in places]].float().sum().item() / 255)
                for total, (_, places) in model.seen[stage]
            ]
            assert all(matches) if same or stage == "val" else not any(matches)


def test_no_validation_split(tmp_path):
    model = Recorder()
    trainer(tmp_path, max_epochs=1).fit(model, datamodule=digits(val_size=0))
    assert len(model.seen["train"]) == 7
    assert model.seen["val"] == []


def resumed(folder, make, saved, falls_after):
    """Batches that count of a run that falls over and of another that resumes it; those of a run that does neither."""
    unbroken, first, second = Recorder(), Recorder(falls_after), Recorder()
    trainer(folder, max_epochs=3).fit(unbroken, datamodule=make())
    saving = ModelCheckpoint(folder, every_n_train_steps=saved, save_top_k=-1, filename="{step}")
    with pytest.raises(ConnectionAbortedError):
        trainer(folder, max_epochs=3, callbacks=[saving], enable_checkpointing=True).fit(first, datamodule=make())
    path = folder / f"step={saved}.ckpt"
    trainer(folder, max_epochs=3).fit(second, datamodule=make(), ckpt_path=str(path))
    return first.seen["train"][:saved] + second.seen["train"], unbroken.seen["train"]


@pytest.mark.parametrize(("saved", "falls_after"), [(2, 3), (6, 8), (9, 9), (7, 10)])
def test_resumed_training_sees_what_an_unbroken_one_sees(tmp_path, saved, falls_after):
    seen, expected = resumed(tmp_path, lambda: digits(seed=5), saved, falls_after)
    assert len(expected) == 18
    assert seen == expected


def test_overfitting_sees_the_same_batches_each_epoch(tmp_path):
    model = Recorder()
    trainer(tmp_path, max_epochs=2, overfit_batches=2, limit_val_batches=0).fit(model, datamodule=digits(augment=False))
    assert model.seen["train"][:2] == model.seen["train"][2:]


@pytest.mark.parametrize("sizes", [[(32, 32)] * 5, [(32, 32), (64, 32), (32, 32)]])
def test_predict_gives_images_and_paths(tmp_path, sizes):
    folder = tmp_path / "images"
    folder.mkdir()
    for i, size in enumerate(sizes):
        Image.fromarray(np.full((size[1], size[0], 3), i, dtype=np.uint8)).save(folder / f"{i}.png")
    model = Recorder()
    data = ImageDataModule("cifar10", root=str(tmp_path / "nothing"), eval_batch_size=2, predict_folder=str(folder))
    trainer(tmp_path).predict(model, datamodule=data, return_predictions=False)
    paths = [path for _, (names,) in model.seen["predict"] for path in names]
    assert paths == [str(folder / f"{i}.png") for i in range(len(sizes))]


def test_predict_without_a_folder_says_what_to_give():
    with pytest.raises(ValueError, match=r"--data\.init_args\.predict_folder"):
        digits().predict_dataloader()


def test_data_needs_lightning_only_for_the_datamodule():
    code = "import sys, maep_lightning.data as d; d.get_spec('cifar10'); assert 'lightning' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


def photographs(folder, **options):
    small = {"image_size": 16, "crop_pct": 0.8, "val_size": 6, "batch_size": 4, "eval_batch_size": 5, "memory_gb": 0}
    return ImageDataModule("folder", folder=str(folder), **(small | options))


def test_streamed_and_resident_files_give_the_same_batches(photos, tmp_path):
    seen = []
    for memory_gb in (0, 1):
        model = Recorder()
        run = trainer(tmp_path, max_epochs=2)
        run.fit(model, datamodule=photographs(photos, memory_gb=memory_gb))
        run.test(model, datamodule=photographs(photos, memory_gb=memory_gb), verbose=False)
        seen.append(model.seen)
    assert seen[0] == seen[1]
    assert len(seen[0]["train"]) == 12
    assert sorted(int(place) for _, (_, places) in seen[0]["test"] for place in places) == list(range(15))


@pytest.mark.parametrize("num_workers", [0, 1])
def test_streamed_training_resumes_inside_an_epoch(photos, tmp_path, num_workers):
    seen, expected = resumed(tmp_path, lambda: photographs(photos, seed=5, num_workers=num_workers), 4, 5)
    assert len(expected) == 18
    assert seen == expected


def test_training_anew_with_the_data_of_a_resumed_run_begins_at_the_first_batch(tmp_path):
    saving = ModelCheckpoint(tmp_path, every_n_train_steps=2, save_top_k=-1, filename="{step}")
    data, first, second = digits(seed=5), Recorder(), Recorder()
    trainer(tmp_path, max_epochs=1, callbacks=[saving], enable_checkpointing=True).fit(first, datamodule=data)
    trainer(tmp_path, max_epochs=1).fit(Recorder(), datamodule=data, ckpt_path=str(tmp_path / "step=2.ckpt"))
    trainer(tmp_path, max_epochs=1).fit(second, datamodule=data)
    assert second.seen["train"] == first.seen["train"]


def test_training_images_without_augmentation_are_decoded_as_test_images_are(photos, tmp_path):
    data, model = photographs(photos, augment=False, memory_gb=1), Recorder()
    trainer(tmp_path, max_epochs=1).fit(model, datamodule=data)
    files = data.source.load("train")
    by_label = {label: data.source.decoded(files.take(files.labels == label)).images for label in range(3)}
    expected = {round(image.sum().item() / 255, 2) for images in by_label.values() for image in images}
    data.trainer = SimpleNamespace(training=True)
    images, _ = data.on_after_batch_transfer((data.train_set().images, data.train_set().labels), 0)
    assert images.shape == (24, 3, 16, 16)
    assert {round(image.double().sum().item(), 2) for image in images} <= expected


def shared_view(data, images, rank, world_size):
    loop = SimpleNamespace(total_batch_idx=3)
    data.trainer = SimpleNamespace(training=True, global_rank=rank, world_size=world_size, fit_loop=loop)
    return data.on_after_batch_transfer((images[rank::world_size],), 0)[0]


@pytest.mark.parametrize("make", [lambda photos: digits(), photographs])
def test_processes_augment_as_one_that_has_their_batches(photos, make):
    data = make(photos)
    images = torch.randint(0, 256, (6, 3, 20, 20), dtype=torch.uint8)
    whole = shared_view(data, images, 0, 1)
    assert not torch.equal(whole, shared_view(make(photos), images.flip(0), 0, 1).flip(0))
    for rank in range(2):
        assert torch.equal(shared_view(data, images, rank, 2), whole[rank::2])


def test_sets_beyond_the_memory_are_streamed_but_not_handed_out_whole(photos):
    data = photographs(photos, num_workers=1, test_limit=9)
    for loader in (data.train_dataloader(), data.val_dataloader(), data.test_dataloader()):
        assert isinstance(loader, StreamLoader)
    with pytest.raises(
        ValueError, match=r"The 9 test images of photos take 6\.91e-06 GB.*test_limit, or raise memory_gb"
    ):
        data.test_set()
    assert data.train_size == 24
    assert data.monitor_set(5).images.shape == (5, 3, 16, 16)
    sample = data.test_sample(3)  # the first, the middle and the last
    data.memory_gb = 1
    for expected, found in zip(data.test_set().take(torch.tensor([0, 4, 8])), sample, strict=True):
        assert torch.equal(found, expected)
    assert len(data.test_sample(100).labels) == 9


def test_test_set_keeps_the_order_of_a_list(photos, tmp_path):
    (tmp_path / "few.txt").write_text("c/c_0.JPEG\na/a_1.JPEG\nc/c_1.JPEG\n")
    data = photographs(photos, image_list=str(tmp_path / "few.txt"), test_limit=2, memory_gb=1)
    assert data.test_set().labels.tolist() == [2, 0]
    assert torch.equal(data.test_set().images[1], data.source.decoder()(photos / "val" / "a" / "a_1.JPEG"))


def test_images_without_classes_are_for_tasks_that_need_none(tmp_path, write_photos):
    write_photos(tmp_path / "photos", {"train": 10})
    with pytest.raises(ValueError, match=r"images of photos have no classes, which Recorder needs: .* train/CLASS/"):
        trainer(tmp_path, max_epochs=1).fit(Recorder(), datamodule=photographs(tmp_path / "photos"))
    model = Recorder()
    model.needs_labels = False
    trainer(tmp_path, max_epochs=1).fit(model, datamodule=photographs(tmp_path / "photos"))
    assert len(model.seen["train"]) == 1
    with pytest.raises(AttributeError, match="images of photos have no classes"):
        _ = photographs(tmp_path / "photos").num_classes


@pytest.mark.parametrize(("device", "pinned"), [("cpu", False), ("cuda", True)])
def test_memory_is_pinned_for_cuda_alone(photos, device, pinned, monkeypatch):
    asked = []
    monkeypatch.setattr(datamodule, "StreamLoader", lambda *_, pin_memory, **__: asked.append(pin_memory))
    data = photographs(photos)
    strategy = SimpleNamespace(root_device=torch.device(device))
    data.trainer = SimpleNamespace(global_rank=0, world_size=1, strategy=strategy)
    data.train_dataloader()
    assert asked == [pinned]


def test_training_needs_no_test_split(photos, tmp_path):
    (photos / "val").rename(tmp_path / "elsewhere")
    model = Recorder()
    trainer(tmp_path, max_epochs=1).fit(model, datamodule=photographs(photos))
    assert len(model.seen["train"]) == 6


def test_small_images_are_moved_unless_a_crop_scale_is_asked_for():
    images = digits().test_set().images
    moved, zoomed = (shared_view(data, images, 0, 1) for data in (digits(), digits(crop_scale=(0.1, 0.2))))
    assert zoomed.shape == moved.shape == images.shape
    # A fifth of the area, enlarged, is smoother than the image.
    assert zoomed.diff(dim=-1).abs().mean() < 0.7 * moved.diff(dim=-1).abs().mean()


REAL = Path(os.environ.get("MAEP_DATA_DIR", "nowhere"))


@pytest.mark.skipif(not (REAL / "imagenette2-320").is_dir(), reason="MAEP_DATA_DIR holds no Imagenette")
def test_real_imagenette():
    data = ImageDataModule("imagenette", root=str(REAL), test_limit=20, download=False)
    assert data.train_size == 9469 - 500
    assert data.test_set().images.shape == (20, 3, 224, 224)
    assert set(data.test_set().labels.tolist()) == {0, 217, 482, 491, 497, 566, 569, 571, 574, 701}
