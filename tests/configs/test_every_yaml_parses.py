"""Every shipped configuration is understood by the real parser, with its verb and with every overlay."""

import re
import shlex
from pathlib import Path

import pytest
import yaml
from torchvision.models import get_model_weights

from maep_lightning.data import ImageSource

ROOT = Path(__file__).resolve().parents[2]
CONFIGS = ROOT / "configs"
OVERLAYS = sorted((CONFIGS / "scale").glob("*.yaml"))
RUNNABLE = sorted(path for path in CONFIGS.rglob("*.yaml") if path not in OVERLAYS)
VERBS = {
    "classifier": "fit",
    "pretrain": "fit",
    "finetune": "fit",
    "lora": "fit",
    "denoise": "fit",
    "collage": "fit",
    "whitebox": "fit",
    "attack": "test",
    "blind": "test",
    "ladder": "test",
    "stochastic": "test",
    "predict": "predict",
}


def name(path):
    return path.relative_to(CONFIGS).as_posix()


def verb_of(path):
    stem = path.stem.split("-")[0].split("_")[0]
    assert stem in VERBS, f"{path} is named after no stage; a file's name tells its command: {', '.join(VERBS)}"
    return VERBS[stem]


def parsed(cli, capsys, *words):
    with pytest.raises(SystemExit) as exit_:
        cli(*words, "--print_config")
    captured = capsys.readouterr()
    assert exit_.value.code == 0, captured.err
    return yaml.safe_load(captured.out)


def test_configurations_are_there():
    assert RUNNABLE
    assert OVERLAYS


@pytest.mark.parametrize("path", RUNNABLE, ids=name)
def test_parses_with_its_verb(path, cli, capsys):
    config = parsed(cli, capsys, verb_of(path), f"--config={path}")
    written = yaml.safe_load(path.read_text())
    for key, value in written["model"].get("init_args", {}).items():
        if isinstance(value, str | int | float):
            assert config["model"]["init_args"][key] == value
    assert config["trainer"]["inference_mode"] is False


@pytest.mark.parametrize("overlay", OVERLAYS, ids=name)
@pytest.mark.parametrize("base", [path for path in RUNNABLE if path.parent.name == "cifar10"], ids=name)
def test_overlays_compose(overlay, base, cli, capsys):
    config = parsed(cli, capsys, verb_of(base), f"--config={base}", f"--config={overlay}")
    for key, value in (yaml.safe_load(overlay.read_text()).get("trainer") or {}).items():
        if isinstance(value, str | int | float):
            assert config["trainer"][key] == value


def documented(folder):
    """The commands with a configuration of a folder and an overlay, in headers of configurations and in pages."""
    files = [*RUNNABLE, *OVERLAYS, ROOT / "README.md", *(ROOT / "docs").glob("*.md")]
    text = "\n".join(path.read_text() for path in files).replace("\\\n", "")
    commands = re.findall(rf"^(?:# )?lightning (\w+ --config configs/{folder}/.*configs/scale/.*)$", text, re.MULTILINE)
    return sorted({" ".join(shlex.split(command, comments=True)) for command in commands})


@pytest.mark.parametrize("command", documented("imagenet"))
def test_documented_overlays_leave_the_batches_of_large_images(command, cli, capsys):
    """They are part of the recipe: the learning rate follows them, and 224 px need more memory than 32."""
    words = [str(ROOT / word) if word.startswith("configs/") else word for word in command.split()]
    alone = yaml.safe_load(Path(words[2]).read_text())
    config = parsed(cli, capsys, *words)
    assert config["trainer"]["precision"] == "bf16-mixed"
    assert config["data"]["init_args"]["batch_size"] == alone["data"]["init_args"]["batch_size"]


def test_every_stage_of_large_images_is_documented_with_an_overlay():
    stages = {re.search(r"imagenet/(\w+)\.yaml", command)[1] for command in documented("imagenet")}
    assert stages >= {"pretrain", "finetune", "lora"}


@pytest.mark.parametrize("path", RUNNABLE, ids=name)
def test_says_its_own_command(path):
    """The command in the header runs this file: readers copy it."""
    header = [line for line in path.read_text().splitlines() if line.startswith("#")]
    assert any(f"lightning {verb_of(path)} --config configs/{name(path)}" in line for line in header)


@pytest.mark.oracle
@pytest.mark.parametrize(
    "path", [path for path in RUNNABLE if "torchvision:" in path.read_text() and path.stem != "collage"], ids=name
)
def test_classifiers_of_torchvision_see_images_as_their_weights_were_chosen(path):
    config = yaml.safe_load(path.read_text())
    name, weights = config["model"]["init_args"]["classifier"].removeprefix("torchvision:").split("@")
    data = config["data"]["init_args"]
    decoder = ImageSource(data["dataset"], crop_pct=data.get("crop_pct")).decoder()
    preset = get_model_weights(name)[weights].transforms()
    assert ([decoder.resize], [decoder.crop]) == (preset.resize_size, preset.crop_size)
