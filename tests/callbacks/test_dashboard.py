import re

import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import EMAWeightAveraging, ModelCheckpoint
from lightning.pytorch.loggers import TensorBoardLogger
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.custom_scalar import layout_pb2
from tensorboard.plugins.hparams import plugin_data_pb2
from torch import nn

from maep_lightning.callbacks.dashboard import RobustnessDashboard
from maep_lightning.callbacks.images import PurificationGrid
from maep_lightning.data import ImageDataModule

CLEAN, PURIFIED = "monitor/acc_clean", "monitor/acc_purified"
ATTACKED = {name: f"monitor/{name}_pgd2/Linf_8-255/acc" for name in ("undefended", "blind", "whitebox")}


class Shift(nn.Module):
    """A purifier that adds one learnt number, and remembers how it was called."""

    def __init__(self):
        super().__init__()
        self.shift = nn.Parameter(torch.zeros(()))
        self.dropout = nn.Dropout(0.5)
        self.calls = []

    def forward(self, images):
        self.calls.append((self.training, images.dtype, torch.is_autocast_enabled("cpu"), self.shift.item()))
        return (self.dropout(images) + self.shift).clamp(0, 1)


class Linear(nn.Sequential):
    def __init__(self):
        super().__init__(nn.Flatten(), nn.Linear(3 * 32 * 32, 10))
        generator = torch.Generator().manual_seed(0)
        with torch.no_grad():
            self[1].weight.copy_(torch.randn(10, 3 * 32 * 32, generator=generator) / 10)


class Task(LightningModule):
    def __init__(self, with_classifier=True, with_purifier=True):
        super().__init__()
        self.save_hyperparameters()
        self.weight = nn.Parameter(torch.zeros(()))
        self.purifier = Shift() if with_purifier else None
        self.classifier = Linear().eval().requires_grad_(False) if with_classifier else None

    def training_step(self, batch, batch_idx):
        if self.purifier is None:
            return self.weight * 0
        return -self.purifier(batch[0]).mean()

    def validation_step(self, batch, batch_idx):
        pass

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


def fit(folder, *callbacks, task=None, **options):
    task = task or Task()
    logger = TensorBoardLogger(folder, name="", version="run", default_hp_metric=False)
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "accelerator": "cpu", "max_epochs": 3}
    saving = any(isinstance(callback, ModelCheckpoint) for callback in callbacks)
    run = Trainer(
        default_root_dir=folder,
        logger=logger,
        callbacks=list(callbacks),
        enable_checkpointing=saving,
        **quiet | options,
    )
    run.fit(task, datamodule=ImageDataModule("digits", batch_size=400, seed=1))
    return run, task


def events(folder):
    accumulator = EventAccumulator(str(folder / "run"), size_guidance={"tensors": 0, "scalars": 0, "images": 0})
    return accumulator.Reload()


def scalars(folder, tag):
    return [(event.step, event.value) for event in events(folder).Scalars(tag)]


def dashboard(**options):
    return RobustnessDashboard(**({"num_images": 20, "steps": 2} | options))


def test_chart_has_every_accuracy_before_training_and_after_each_epoch(tmp_path):
    fit(tmp_path, dashboard())
    for tag in (CLEAN, PURIFIED, *ATTACKED.values()):
        assert [step for step, _ in scalars(tmp_path, tag)] == [0, 3, 6, 9]
    for constant in (CLEAN, ATTACKED["undefended"]):
        assert len({value for _, value in scalars(tmp_path, constant)}) == 1


def test_accuracies_are_those_of_the_networks(tmp_path):
    _, task = fit(tmp_path, dashboard())
    images, labels = ImageDataModule("digits").monitor_set(20)
    images = images.float() / 255
    clean = (task.classifier(images).argmax(1) == labels).float().mean().item()
    purified = (images + task.purifier.shift.detach()).clamp(0, 1)
    assert scalars(tmp_path, CLEAN)[-1][1] == pytest.approx(clean)
    expected = (task.classifier(purified).argmax(1) == labels).float().mean().item()
    assert scalars(tmp_path, PURIFIED)[-1][1] == pytest.approx(expected)


def test_purifier_without_effect_leaves_threats_equal(tmp_path):
    fit(tmp_path, dashboard(num_images=100))
    at_start = {name: scalars(tmp_path, tag)[0][1] for name, tag in ATTACKED.items()}
    assert at_start["blind"] == at_start["undefended"] == at_start["whitebox"]
    assert at_start["blind"] < scalars(tmp_path, CLEAN)[0][1]


def test_images_are_attacked_once_inside_the_ball(tmp_path, monkeypatch):
    made = []
    attack = RobustnessDashboard.attack

    def spying(self, model, images, labels):
        made.append((model, images, attack(self, model, images, labels)))
        return made[-1][2]

    monkeypatch.setattr(RobustnessDashboard, "attack", spying)
    _, task = fit(tmp_path, dashboard(whitebox=False))
    ((model, clean, adversarial),) = made
    assert model is task.classifier
    assert (adversarial - clean).abs().max() <= 8 / 255 + 1e-6
    assert "whitebox" not in str(events(tmp_path).Tags()["scalars"])


def test_measures_in_evaluation_mode_and_fp32_and_gives_the_mode_back(tmp_path):
    _, task = fit(tmp_path, dashboard(), precision="bf16-mixed")
    measured = [call for call in task.purifier.calls if not call[0]]
    assert {call[1:3] for call in measured} == {(torch.float32, False)}
    trained = [call for call in task.purifier.calls if call[0]]
    assert len(trained) == 9
    assert {call[2] for call in trained} == {True}


def test_training_is_the_same_with_and_without_it(tmp_path):
    shifts = []
    for name, callbacks in (("with", [dashboard(), PurificationGrid(steps=2)]), ("without", [])):
        torch.manual_seed(0)
        _, task = fit(tmp_path / name, *callbacks)
        shifts.append((task.purifier.shift.item(), torch.rand(()).item()))
    assert shifts[0] == shifts[1]


def test_figures_repeat(tmp_path):
    for name in ("a", "b"):
        torch.manual_seed(0)
        fit(tmp_path / name, dashboard())
    for tag in ATTACKED.values():
        assert scalars(tmp_path / "a", tag) == scalars(tmp_path / "b", tag)


@pytest.mark.parametrize("first", ["ema", "dashboard"])
def test_averaged_weights_are_measured_whatever_the_order(tmp_path, first):
    callbacks = [EMAWeightAveraging(decay=0.5), dashboard(whitebox=False)]
    _, task = fit(tmp_path, *(callbacks if first == "ema" else reversed(callbacks)), max_epochs=1)
    averaged = task.purifier.shift.item()
    trained = task.purifier.calls[-1]
    assert trained[0] is False
    assert trained[3] == pytest.approx(averaged)


def test_one_layout_that_finds_every_curve(tmp_path):
    callback, task = dashboard(), Task()
    run, _ = fit(tmp_path, callback, task=task)
    run.fit_loop.max_epochs = 4
    run.fit(task, datamodule=ImageDataModule("digits", batch_size=400))
    log = events(tmp_path)
    (event,) = log.Tensors("custom_scalars__config__")
    layout = layout_pb2.Layout.FromString(event.tensor_proto.string_val[0])
    (chart,) = [chart for category in layout.category for chart in category.chart]
    patterns = [re.compile(tag) for tag in chart.multiline.tag]
    drawn = {tag for tag in log.Tags()["scalars"] if any(pattern.match(tag) for pattern in patterns)}
    assert drawn == {CLEAN, PURIFIED, *ATTACKED.values()}


def test_hyperparameters_come_with_final_metrics(tmp_path):
    fit(tmp_path, dashboard())
    metadata = events(tmp_path).summary_metadata
    contents = [
        plugin_data_pb2.HParamsPluginData.FromString(metadata[f"_hparams_/{part}"].plugin_data.content)
        for part in ("experiment", "session_start_info")
    ]
    metrics = {info.name.tag for info in contents[0].experiment.metric_infos}
    assert metrics == {CLEAN, PURIFIED, *ATTACKED.values()}
    hyperparameters = contents[1].session_start_info.hparams
    assert hyperparameters["data/dataset"].string_value == "digits"
    assert hyperparameters["data/seed"].number_value == 1
    assert hyperparameters["with_classifier"].number_value == 1


def test_cadence_in_epochs(tmp_path):
    fit(tmp_path, dashboard(every_n_epochs=2), max_epochs=4)
    assert [step for step, _ in scalars(tmp_path, PURIFIED)] == [0, 6, 12]


def test_cadence_in_steps_counts_optimiser_steps(tmp_path):
    fit(tmp_path, dashboard(every_n_steps=2), max_epochs=4, accumulate_grad_batches=2)
    assert [step for step, _ in scalars(tmp_path, PURIFIED)] == [0, 2, 4, 6, 8]


def test_works_without_validation(tmp_path):
    fit(tmp_path, dashboard(), limit_val_batches=0)
    assert [step for step, _ in scalars(tmp_path, PURIFIED)] == [0, 3, 6, 9]


def test_checkpoints_can_monitor_it(tmp_path):
    saving = ModelCheckpoint(tmp_path / "best", monitor=ATTACKED["whitebox"], mode="max", save_top_k=1)
    fit(tmp_path, dashboard(), saving)
    best = max(value for step, value in scalars(tmp_path, ATTACKED["whitebox"]) if step)
    assert saving.best_model_score.item() == pytest.approx(best)


@pytest.mark.parametrize("lacking", ["classifier", "purifier"])
def test_idle_without_its_networks(tmp_path, lacking):
    with pytest.warns(UserWarning, match=f"RobustnessDashboard is idle: Task has no {lacking}"):
        fit(tmp_path, dashboard(), task=Task(**{f"with_{lacking}": False}))
    assert not [tag for tag in events(tmp_path).Tags()["scalars"] if tag.startswith("monitor")]


def test_trainable_classifier_is_refused(tmp_path):
    task = Task()
    task.classifier.requires_grad_(True)
    with pytest.raises(ValueError, match="needs a frozen classifier"):
        fit(tmp_path, dashboard(), task=task)


@pytest.mark.parametrize("options", [{"num_images": 0}, {"steps": 0}, {"every_n_epochs": 0}, {"every_n_steps": 0}])
def test_numbers_below_one_are_refused(options):
    with pytest.raises(ValueError, match="at least 1"):
        dashboard(**options)


def test_eps_beyond_the_pixel_range_is_refused():
    with pytest.raises(ValueError, match="8/255"):
        dashboard(eps=8.0)


def test_grid_shows_the_same_images_each_epoch(tmp_path):
    fit(tmp_path, PurificationGrid(num_images=4, steps=2))
    log = events(tmp_path)
    pictures = log.Images("purification/blind_pgd2/Linf_8-255")
    assert [picture.step for picture in pictures] == [0, 3, 6, 9]
    assert {(picture.height, picture.width) for picture in pictures} == {(4 * 34, 4 * 34)}


def test_grid_without_a_classifier_shows_noise(tmp_path):
    fit(tmp_path, PurificationGrid(num_images=4), task=Task(with_classifier=False), max_epochs=1)
    assert events(tmp_path).Tags()["images"] == ["purification/noise/Linf_8-255"]
