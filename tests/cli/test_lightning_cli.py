"""The traps of LightningCLI, each with what the user expects instead."""

import json
import warnings
from pathlib import Path

import pytest
import torch
import yaml
from lightning.pytorch import Callback, LightningDataModule, LightningModule
from lightning.pytorch.cli import LightningCLI
from PIL import Image
from torch.utils.data import DataLoader

from maep_lightning.attacks.threat import Epsilon
from maep_lightning.models.classifiers import create_classifier, save_classifier

SEEN: dict = {}
QUIET = (
    "--trainer.accelerator=cpu",
    "--trainer.enable_progress_bar=false",
    "--trainer.enable_model_summary=false",
    "--trainer.max_steps=1",
)


class ToyStage(LightningModule):
    """Records what it was made with."""

    def __init__(self, mask_ratio: float = 0.75, eps: Epsilon = Epsilon("8/255"), width: int = 2) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.eps = eps
        self.layer = torch.nn.Linear(2, width)

    def setup(self, stage):
        SEEN.update(task=type(self).__name__, stage=stage, eps=self.eps, mask_ratio=self.hparams.mask_ratio)

    def training_step(self, batch, batch_idx):
        return self.layer(batch).sum()

    def test_step(self, batch, batch_idx):
        with torch.enable_grad():
            batch = batch.clone().requires_grad_()
            (SEEN["gradient"],) = torch.autograd.grad(self.layer(batch).sum(), batch)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.1)


class ToyNextStage(ToyStage):
    """Another task with the same parameters."""


class ToyOther(LightningModule):
    """A task with nothing in common but the layer, so that a state dict of ToyStage fits."""

    def __init__(self, eps: Epsilon = Epsilon("1/255")) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(2, 2)

    def test_step(self, batch, batch_idx):
        SEEN.update(task="ToyOther")


class ToyClassifier(ToyStage):
    """A task that wants to know the number of classes."""

    def __init__(self, num_classes: int = 2, mask_ratio: float = 0.1, eps: float = 0.1) -> None:
        super().__init__(mask_ratio, eps, num_classes)
        SEEN.update(num_classes=num_classes)


class ToyData(LightningDataModule):
    """Four points."""

    num_classes = 7

    def __init__(self, batch_size: int = 4) -> None:
        super().__init__()
        self.batch_size = batch_size

    def train_dataloader(self):
        return DataLoader(torch.ones(4, 2), self.batch_size)

    test_dataloader = train_dataloader


class ToyCallbackA(Callback):
    """Nothing."""


class ToyCallbackB(Callback):
    """Nothing."""


@pytest.fixture(autouse=True)
def _forget():
    SEEN.clear()


@pytest.fixture
def toy(cli):
    """Runs a verb with the toy data."""
    return lambda verb, *words: cli(verb, *words, "--data=ToyData", *(QUIET if verb == "fit" else QUIET[:3]))


@pytest.fixture
def checkpoint(toy, tmp_path):
    """A checkpoint of ToyStage at mask ratio 0.75."""
    toy("fit", "--model=ToyStage", "--model.mask_ratio=0.75")
    (path,) = tmp_path.rglob("*.ckpt")
    SEEN.clear()
    return path


def printed(capsys, run, *words):
    """The configuration that a command would run."""
    with pytest.raises(SystemExit) as exit_:
        run(*words, "--print_config")
    assert exit_.value.code == 0
    return yaml.safe_load(capsys.readouterr().out)


def refused(capsys, run, *words):
    """The message of a command that the user got wrong."""
    with pytest.raises(SystemExit) as exit_:
        run(*words)
    assert exit_.value.code == 2
    text = capsys.readouterr().err
    assert "Traceback" not in text
    return text[text.index("error:") :]


# --ckpt_path


def test_lightning_still_has_the_method_that_is_overridden():
    assert callable(LightningCLI._parse_ckpt_path)


def test_checkpoint_hyper_parameters_do_not_override_the_command_line(toy, checkpoint):
    toy("test", "--model=ToyStage", "--model.mask_ratio=0.1", f"--ckpt_path={checkpoint}")
    assert SEEN["mask_ratio"] == 0.1


def test_checkpoint_hyper_parameters_do_not_override_a_config(toy, checkpoint, tmp_path):
    (tmp_path / "c.yaml").write_text("model: {class_path: ToyStage, init_args: {mask_ratio: 0.2}}")
    toy("test", "--config=c.yaml", f"--ckpt_path={checkpoint}")
    assert SEEN["mask_ratio"] == 0.2


def test_checkpoint_hyper_parameters_do_not_override_a_resumed_fit(toy, checkpoint):
    toy("fit", "--model=ToyStage", "--model.eps=4/255", "--trainer.max_steps=2", f"--ckpt_path={checkpoint}")
    assert str(SEEN["eps"]) == "4/255"


def test_checkpoint_class_does_not_replace_the_class_asked_for(toy, checkpoint):
    toy("test", "--model=ToyNextStage", "--model.eps=1/255", f"--ckpt_path={checkpoint}")  # a subclass of ToyStage
    assert SEEN["task"] == "ToyNextStage"
    assert str(SEEN["eps"]) == "1/255"


def test_checkpoint_of_another_task_is_refused(toy, checkpoint, capsys):
    text = refused(capsys, toy, "test", "--model=ToyOther", f"--ckpt_path={checkpoint}")
    assert "was written by ToyStage, but ToyOther was asked for" in text
    assert not SEEN


def flip_a_byte_of_the_weights(path):
    content = bytearray(path.read_bytes())
    weight = torch.load(path, weights_only=True)["state_dict"]["layer.weight"]
    content[content.index(weight.numpy().tobytes())] ^= 1
    path.write_bytes(content)
    assert not torch.equal(torch.load(path, weights_only=True)["state_dict"]["layer.weight"], weight)


DAMAGES = {
    "truncated": (lambda path: path.write_bytes(path.read_bytes()[:-100]), "it is cut short"),
    "empty": (lambda path: path.write_bytes(b""), "it is cut short"),
    "garbage": (lambda path: path.write_bytes(b"nonsense" * 99), "another kind of file"),
    "flipped byte": (flip_a_byte_of_the_weights, "does not have its checksum"),
    "no dict": (lambda path: torch.save([1, 2], path), "no state of a training"),
    "weights alone": (lambda path: torch.save({"layer.bias": torch.ones(2)}, path), "no state of a training"),
    "code": (
        lambda path: torch.save({"state_dict": {}, "module": torch.nn.ReLU()}, path),
        "ReLU, which is only read with --weights_only false",
    ),
}


@pytest.mark.faults
@pytest.mark.parametrize(("damage", "reason"), DAMAGES.values(), ids=DAMAGES)
def test_damaged_checkpoint_is_named_in_one_line(damage, reason, toy, checkpoint, capsys):
    damage(checkpoint)
    text = refused(capsys, toy, "test", "--model=ToyStage", f"--ckpt_path={checkpoint}")
    assert f"{checkpoint} is no checkpoint to resume from: " in text
    assert reason in text
    assert "Give --ckpt_path another, or start anew" in text
    assert len(text.splitlines()) == 1
    assert not SEEN


def test_checkpoint_with_objects_is_read_where_it_is_trusted(toy, checkpoint):
    torch.save(torch.load(checkpoint, weights_only=True) | {"module": torch.nn.ReLU()}, checkpoint)
    toy("test", "--model=ToyStage", f"--ckpt_path={checkpoint}", "--weights_only=false")
    assert SEEN["task"] == "ToyStage"


def test_checkpoint_that_is_not_there_is_named(toy, capsys):
    text = refused(capsys, toy, "test", "--model=ToyStage", "--ckpt_path=nowhere.ckpt")
    assert "nowhere.ckpt" in text


@pytest.fixture
def resumed(cli, tmp_path):
    """Fits a task to so many steps with `--ckpt_path last`, and keeps checkpoints in `kept`."""
    callback = {"class_path": "ModelCheckpoint", "init_args": {"dirpath": "kept", "save_last": True}}
    (tmp_path / "c.yaml").write_text(yaml.safe_dump({"trainer": {"callbacks": [callback]}}))
    words = ("fit", "--config=c.yaml", "--data=ToyData", "--ckpt_path=last", *QUIET[:3])
    return lambda task, steps: cli(*words, f"--model={task}", f"--trainer.max_steps={steps}")


def test_last_checkpoint__is_gone_on_from_and_none_is_no_mistake(resumed, tmp_path, caplog):
    with pytest.warns(UserWarning, match="no last checkpoint") as warned:
        resumed("ToyStage", 1)
    assert len([warning for warning in warned if "no last checkpoint" in str(warning.message)]) == 1
    assert {path.name for path in (tmp_path / "kept").iterdir()} == {"last.ckpt", "epoch=0-step=1.ckpt"}
    assert "Restored all states" not in caplog.text
    resumed("ToyStage", 2)
    assert f"Restored all states from the checkpoint at {tmp_path / 'kept' / 'last.ckpt'}" in caplog.text


@pytest.mark.faults
@pytest.mark.parametrize("kind", ["truncated", "garbage", "flipped byte", "no dict"])
def test_damaged_last_checkpoint_is_named_with_another_of_its_folder(kind, resumed, tmp_path, capsys):
    damage, reason = DAMAGES[kind]
    resumed("ToyStage", 1)
    SEEN.clear()
    last = tmp_path / "kept" / "last.ckpt"
    damage(last)
    text = refused(capsys, resumed, "ToyStage", 2)
    assert f"{last} is no checkpoint to resume from: " in text
    assert reason in text
    assert f"such as {last.with_name('epoch=0-step=1.ckpt')}, or start anew" in text
    assert "where it says last, remove this file first" in text
    assert not SEEN


def test_last_checkpoint_of_another_task_is_refused(resumed, capsys):
    resumed("ToyStage", 1)
    SEEN.clear()
    assert "was written by ToyStage, but ToyOther was asked for" in refused(capsys, resumed, "ToyOther", 2)
    assert not SEEN


def test_checkpoints_hold_plain_values_only(checkpoint):
    saved = torch.load(checkpoint, weights_only=True)["hyper_parameters"]
    assert saved["eps"] == "8/255"
    assert type(saved["eps"]) is str


# composition


def test_configs_merge_deeply_and_the_last_wins(cli, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("a.yaml").write_text(
        "model: {class_path: ToyStage, init_args: {mask_ratio: 0.3, width: 5}}\n"
        "data: ToyData\ntrainer: {max_epochs: 3, callbacks: [ToyCallbackA]}\n"
    )
    Path("b.yaml").write_text("model: {init_args: {width: 6}}\ntrainer: {max_epochs: 4}\n")
    Path("replace.yaml").write_text("trainer: {callbacks: [ToyCallbackB]}\n")
    Path("append.yaml").write_text("trainer: {callbacks+: [ToyCallbackB]}\n")

    def names(config):
        return [c["class_path"].rpartition(".")[2] for c in config["trainer"]["callbacks"]]

    both = printed(capsys, cli, "fit", "--config=a.yaml", "--config=b.yaml", "--model.mask_ratio=0.9")
    assert both["model"]["init_args"] == {"mask_ratio": 0.9, "width": 6, "eps": "8/255"}
    assert both["trainer"]["max_epochs"] == 4
    assert names(both) == ["ToyCallbackA"]
    assert names(printed(capsys, cli, "fit", "--config=a.yaml", "--config=replace.yaml")) == ["ToyCallbackB"]
    appended = printed(capsys, cli, "fit", "--config=a.yaml", "--config=append.yaml")
    assert names(appended) == ["ToyCallbackA", "ToyCallbackB"]


def test_a_value_may_be_a_file_beside_the_one_that_names_it(cli, tmp_path, capsys):
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "model.yaml").write_text("class_path: ToyStage\ninit_args: {width: 9}\n")
    (tmp_path / "deep" / "all.yaml").write_text("model: model.yaml\ndata: ToyData\n")
    config = printed(capsys, cli, "fit", "--config=deep/all.yaml")
    assert config["model"]["init_args"]["width"] == 9


def test_number_of_classes_comes_from_the_data(toy):
    toy("fit", "--model=ToyClassifier")
    assert SEEN["num_classes"] == ToyData.num_classes


def test_eps_is_written_as_people_write_it(toy, cli, tmp_path, capsys):
    toy("fit", "--model=ToyStage", "--model.eps=4/255")
    assert SEEN["eps"] == pytest.approx(4 / 255)
    (saved,) = tmp_path.rglob("fit.yaml")
    assert "eps: 4/255" in saved.read_text()
    (tmp_path / "c.yaml").write_text("model: {class_path: ToyStage, init_args: {eps: 2/255}}\ndata: ToyData")
    assert printed(capsys, cli, "fit", "--config=c.yaml")["model"]["init_args"]["eps"] == "2/255"
    assert "8/255" in refused(capsys, toy, "fit", "--model=ToyStage", "--model.eps=eight")


def test_classes_of_the_user_are_named_by_their_path(cli, tmp_path, monkeypatch, capsys):
    (tmp_path / "mine.py").write_text(
        "from maep_lightning.data import ImageDataModule\n\nclass Mine(ImageDataModule):\n    'Mine.'\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "c.yaml").write_text("model: ToyStage\ndata: {class_path: ImageDataModule, init_args: {val_size: 9}}\n")
    config = printed(capsys, cli, "fit", "--config=c.yaml", "--data=mine.Mine")
    assert config["data"]["class_path"] == "mine.Mine"
    assert config["data"]["init_args"]["val_size"] == 9


# defaults


def test_defaults_of_the_trainer(cli, capsys):
    config = printed(capsys, cli, "test", "--model=ToyStage", "--data=ToyData")
    assert config["trainer"]["inference_mode"] is False
    assert config["trainer"]["logger"]["init_args"]["default_hp_metric"] is False
    assert config["seed_everything"] == 0


def test_gradients_flow_in_test(toy):
    toy("test", "--model=ToyStage")
    assert SEEN["gradient"].abs().sum() > 0


def test_environment_variables_are_no_hidden_input(cli, monkeypatch, capsys):
    monkeypatch.setenv("PL_FIT__MODEL__INIT_ARGS__WIDTH", "9")
    monkeypatch.setenv("PL_FIT__SEED_EVERYTHING", "9")
    config = printed(capsys, cli, "fit", "--model=ToyStage", "--data=ToyData")
    assert config["model"]["init_args"]["width"] == 2
    assert config["seed_everything"] == 0


def test_optimizers_belong_to_the_tasks(toy, capsys):
    assert "'optimizer'" in refused(capsys, toy, "fit", "--model=ToyStage", "--optimizer=SGD")


# what a run leaves behind


def test_each_verb_saves_its_own_configuration_and_may_run_again(toy, tmp_path):
    where = ("--trainer.logger.name=x", "--trainer.logger.version=y", "--trainer.logger=TensorBoardLogger")
    place = (where[2], "--trainer.logger.save_dir=logs", *where[:2])
    toy("fit", "--model=ToyStage", *place)
    toy("fit", "--model=ToyStage", "--model.width=3", *place)
    toy("test", "--model=ToyStage", *place)
    folder = tmp_path / "logs" / "x" / "y"
    assert yaml.safe_load((folder / "fit.yaml").read_text())["model"]["init_args"]["width"] == 3
    assert yaml.safe_load((folder / "test.yaml").read_text())["model"]["init_args"]["width"] == 2
    assert [path.name for path in tmp_path.iterdir()] == ["logs"]
    run = json.loads((folder / "fit.run.json").read_text())
    assert run["seed"] == 0
    assert run["seconds"] >= 0
    assert run["versions"]["torch"] == torch.__version__.split("+")[0]


def test_a_run_without_logger_leaves_nothing(toy, tmp_path):
    toy("test", "--model=ToyStage", "--trainer.logger=false")
    assert list(tmp_path.iterdir()) == []


def test_a_saved_configuration_runs_again(toy, cli, tmp_path, capsys):
    toy("fit", "--model=ToyStage", "--model.eps=3/255")
    (saved,) = tmp_path.rglob("fit.yaml")
    assert printed(capsys, cli, "fit", f"--config={saved}")["model"]["init_args"]["eps"] == "3/255"


# messages


def test_no_warning_of_jsonargparse_and_others_pass(toy, monkeypatch):
    def test_step(self, batch, batch_idx):
        warnings.warn("mine", DeprecationWarning, stacklevel=1)

    monkeypatch.setattr(ToyStage, "test_step", test_step)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        toy("test", "--model=ToyStage")
    texts = [str(w.message) for w in caught]
    assert "mine" in texts
    assert not [t for t in texts if "jsonargparse" in t.lower() or "LightningCLI's args" in t]


@pytest.mark.parametrize(
    ("words", "problem", "hint"),
    [
        (["--model=ToyStage", "--model.mask_rato=0.1"], "ToyStage has no option 'mask_rato'", "mask_ratio"),
        (["--model=ToyStage", "--model.width=three"], "model.width: Expected int, got three", ""),
        (["--model=ToyStge"], "there is no class ToyStge", ""),
        (["--model=ClassifierTrainin"], "there is no class ClassifierTrainin", "did you mean ClassifierTraining"),
        (["--model=nowhere.ToyStage"], "there is no class nowhere.ToyStage", ""),
        (["--model=nowhere.yaml"], "there is no file nowhere.yaml", ""),
        ([], "model is missing", "--config FILE"),
        (["--config=nowhere.yaml"], "does not exist", ""),
        (["--config=broken.yaml"], "broken.yaml is no YAML", "line 2"),
        (["--config=key.yaml"], "no option 'trainer.max_epoch'", "trainer.max_epochs"),
        (["--config=nested.yaml"], "ModelCheckpoint has no option 'monitr'", "did you mean monitor"),
        (["--model=ToyStage", "--trainer.max_epoch=3"], "no option 'trainer.max_epoch'", "trainer.max_epochs"),
        (["--model=ToyStage", "--trainer.callbacks=ModelCheckpont"], "no class ModelCheckpont", "ModelCheckpoint"),
        (["--model=ToyStage", "--trainer.accelerator=quantum"], "invalid accelerator", "cpu"),
        (["--model=ToyStage", "--trainer.fast_dev_run=1", "--trainer.max_epochs=x"], "Expected int, got x", ""),
    ],
)
def test_mistakes_are_explained(words, problem, hint, cli, tmp_path, capsys):
    (tmp_path / "broken.yaml").write_text("model: ToyStage\n data: ToyData\n")
    (tmp_path / "key.yaml").write_text("model: ToyStage\ntrainer: {max_epoch: 3}\n")
    (tmp_path / "nested.yaml").write_text(
        "model: ToyStage\ntrainer: {callbacks: [{class_path: ModelCheckpoint, init_args: {monitr: x}}]}\n"
    )
    text = refused(capsys, cli, "fit", *words, "--data=ToyData")
    assert problem in text
    assert hint in text
    assert len(text.splitlines()) <= 4


def test_errors_of_this_package_are_one_message(cli, capsys):
    text = refused(capsys, cli, "fit", "--model=ToyStage", "--data=ImageDataModule", "--data.dataset=digitz")
    assert "digits" in text


def test_errors_of_others_keep_their_traceback(toy, monkeypatch):
    def broken(self, batch, batch_idx):
        raise ValueError("a bug")

    monkeypatch.setattr(ToyStage, "test_step", broken)
    with pytest.raises(ValueError, match="a bug"):
        toy("test", "--model=ToyStage")


@pytest.mark.parametrize("value", ["1", "true"])
def test_debug_gives_the_traceback(value, toy, monkeypatch):
    monkeypatch.setenv("JSONARGPARSE_DEBUG", value)
    with pytest.raises(Exception, match="mask_rato") as error:
        toy("fit", "--model=ToyStage", "--model.mask_rato=1")
    assert not isinstance(error.value, SystemExit)


SMALL = "{width: 16, depth: 1, heads: 2, decoder_width: 16, decoder_heads: 2, refine_depth: 0}"


@pytest.fixture
def unlabelled(tmp_path):
    """Words for a folder of photographs without classes, and a classifier of ten classes."""
    (tmp_path / "photos" / "train").mkdir(parents=True)
    for number in range(8):
        Image.new("RGB", (40, 36), (30 * number, 0, 0)).save(tmp_path / "photos" / "train" / f"{number}.png")
    save_classifier(create_classifier("resnet8", 10), tmp_path / "ten.safetensors", "resnet8", 10)
    return (
        "fit", *QUIET, "--trainer.logger=false", "--trainer.enable_checkpointing=false", "--data=ImageDataModule",
        "--data.dataset=folder", "--data.folder=photos", "--data.image_size=32", "--data.val_size=2",
        "--data.batch_size=4",
    )  # fmt: skip


def test_images_without_classes_serve_pre_training(cli, unlabelled, tmp_path):
    cli(
        *unlabelled, "--model=MAEPretraining", f"--model.overrides={SMALL}",
        "--trainer.callbacks+=ExportWeights", "--trainer.callbacks.filename=purifier.safetensors",
        "--trainer.default_root_dir=.",
    )  # fmt: skip
    assert (tmp_path / "purifier.safetensors").exists()


@pytest.mark.parametrize(
    "model",
    [
        ("--model=ClassifierTraining", "--model.classifier=resnet8"),
        ("--model=PurifierFinetuning", "--model.classifier=ten.safetensors", f"--model.overrides={SMALL}"),
    ],
)
def test_images_without_classes_are_refused_where_classes_are_needed(cli, unlabelled, model, capsys):
    with pytest.raises(SystemExit) as exit_:
        cli(*unlabelled, *model)
    assert exit_.value.code == 2
    said = f"images of photos have no classes, which {model[0].partition('=')[2]} needs: put each into train/CLASS/"
    assert said in capsys.readouterr().err
