import numpy as np
import pytest
import torch
from PIL import Image

from maep_lightning.models.policies import apply_policy
from maep_lightning.models.registry import create_purifier


@pytest.fixture
def purifier(tmp_path):
    torch.manual_seed(0)
    made = create_purifier(
        "mae_vit_tiny_patch4_32", width=16, depth=1, heads=2, decoder_width=16, decoder_depth=1, decoder_heads=2
    )
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    made.save_pretrained(tmp_path / "purifier.safetensors")
    return made.eval()


@pytest.fixture
def folder(tmp_path):
    """Three images of two sizes in two folders."""
    rng = np.random.default_rng(0)
    for name, size in (("a.png", (32, 32)), ("sub/deep/b.png", (64, 32)), ("sub/c.jpg", (32, 32))):
        path = tmp_path / "in" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (*size, 3), dtype=np.uint8)).save(path)
    return tmp_path / "in"


def predict(cli, folder, *words):
    cli(
        "predict", "--model=PurifierEvaluation", "--model.purifier=purifier.safetensors", "--data=ImageDataModule",
        f"--data.predict_folder={folder}", "--trainer.accelerator=cpu", "--trainer.enable_progress_bar=false", *words,
    )  # fmt: skip


def pixels(path):
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB"))


def test_predict_writes_what_the_purifier_returns(cli, purifier, folder, tmp_path, capsys):
    predict(cli, folder, "--trainer.callbacks+=PurifiedImageWriter", "--trainer.callbacks.output_dir=out")
    written = sorted(path.relative_to(tmp_path / "out").as_posix() for path in (tmp_path / "out").rglob("*.*"))
    assert written == ["a.png", "sub/c.png", "sub/deep/b.png"]
    for source, target in (("a.png", "a.png"), ("sub/deep/b.png", "sub/deep/b.png"), ("sub/c.jpg", "sub/c.png")):
        original = torch.from_numpy(pixels(folder / source).copy()).permute(2, 0, 1)[None] / 255
        with torch.no_grad():
            purified = (purifier(original) * 255).round()[0].permute(1, 2, 0).numpy()
        assert (pixels(tmp_path / "out" / target) == purified).all()
        assert (purified != pixels(folder / source)).any()
    assert "3 purified images in out" in capsys.readouterr().out


def test_predict_writes_without_being_told_where(cli, purifier, folder, tmp_path):
    predict(cli, folder, "--trainer.logger=false")
    assert len(list((tmp_path / "runs" / "purified").rglob("*.png"))) == 3


@pytest.mark.parametrize("case", ["same folder", "same name"])
def test_originals_and_results_are_never_replaced(case, cli, purifier, folder, capsys):
    if case == "same name":
        Image.new("RGB", (32, 32)).save(folder / "a.bmp")
    output = folder if case == "same folder" else "out"
    before = {path: path.read_bytes() for path in folder.rglob("*.*")}
    with pytest.raises(SystemExit) as exit_:
        predict(cli, folder, "--trainer.callbacks+=PurifiedImageWriter", f"--trainer.callbacks.output_dir={output}")
    assert exit_.value.code == 2
    assert ("would be replaced" if case == "same folder" else "a.png") in capsys.readouterr().err
    assert {path: path.read_bytes() for path in folder.rglob("*.*")} == before


@pytest.mark.parametrize("policy", ["tile", "overlap", "interpolate", "resize:16"])
def test_predict_takes_any_size_under_a_policy_that_does(policy, cli, purifier, tmp_path):
    for name, size in (("a.png", (50, 37)), ("b.png", (33, 64))):
        (tmp_path / "photos").mkdir(exist_ok=True)
        Image.fromarray(np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8)).save(
            tmp_path / "photos" / name
        )
    predict(cli, "photos", f"--model.policy={policy}", "--trainer.logger=false")
    with torch.no_grad():
        original = torch.from_numpy(pixels(tmp_path / "photos" / "a.png").copy()).permute(2, 0, 1)[None] / 255
        purified = apply_policy(purifier, policy)(original).clamp(0, 1).mul(255).round()[0].permute(1, 2, 0).numpy()
    assert (pixels(tmp_path / "runs" / "purified" / "a.png") == purified).all()
    assert pixels(tmp_path / "runs" / "purified" / "b.png").shape == (33, 64, 3)


def test_predict_of_another_size_under_native_suggests_a_policy(cli, purifier, tmp_path, capsys):
    (tmp_path / "photos").mkdir()
    Image.new("RGB", (50, 37)).save(tmp_path / "photos" / "a.png")
    with pytest.raises(SystemExit) as exit_:
        predict(cli, "photos", "--trainer.logger=false")
    assert exit_.value.code == 2
    said = capsys.readouterr().err
    assert "a.png is 50x37 pixels; both must be 32 or a multiple of it" in said
    assert "--model.policy tile" in said
