import sys
from dataclasses import replace

import pytest
import torch
from torch import nn

from maep_lightning.evaluation.fingerprint import of_architecture, of_weights
from maep_lightning.models.mae import MaskedAutoencoder
from maep_lightning.models.policies import apply_policy
from maep_lightning.models.purifier import ZOO, PretrainedPurifier, Purifier
from maep_lightning.models.registry import RECIPES, create_purifier, load_purifier
from maep_lightning.models.shapes import maep_conv_patch4_32
from maep_lightning.models.trained import trained_on
from maep_lightning.models.weights import read_weights, write_weights

TINY = {"width": 16, "depth": 1, "heads": 2, "decoder_width": 16, "decoder_heads": 2, "refine_width": 8}


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("jpeg:75", "jpeg:50"),
        ("bit-depth:4", "bit-depth:3"),
        ("median:3", "median:5"),
        ("gaussian:0.8", "gaussian:0.9"),
        ("resize:28", "resize:27"),
        ("noise:0.1", "noise:0.2"),
        ("jpeg:75+median:3", "median:3+jpeg:75"),
    ],
)
def test_load_purifier__every_value_changes_the_output_and_the_fingerprint(one, other):
    images, outputs = torch.rand(1, 3, 32, 32), []
    for spec in (one, other):
        torch.manual_seed(0)
        outputs.append(load_purifier(spec)(images))
    assert not torch.equal(*outputs)
    assert of_architecture(load_purifier(one)) != of_architecture(load_purifier(other))
    assert of_architecture(load_purifier(one)) == of_architecture(load_purifier(one))


def test_load_purifier__each_kind_of_baseline_has_a_fingerprint_of_its_own():
    specs = [recipe.example for name, recipe in RECIPES.items() if name not in ("diffusion", "mix")]
    prints = {(of_architecture(load_purifier(spec)), of_weights(load_purifier(spec))) for spec in specs}
    assert len(prints) == len(specs)


@pytest.mark.parametrize(("one", "other"), [("gaussian:0.5", "gaussian:sigma=1/2"), ("noise:8/255", "noise: 8/255")])
def test_load_purifier__ways_to_write_the_same(one, other):
    assert repr(load_purifier(one)) == repr(load_purifier(other))


def test_load_purifier__joined_ones_are_applied_in_order():
    name = next(ZOO.glob("*.safetensors")).stem
    joined = load_purifier(f"noise:0.1 + {name}")
    images = torch.rand(2, 3, 32, 32)
    torch.manual_seed(0)
    expected = (images + 0.1 * torch.randn_like(images)).clamp(0, 1)
    torch.manual_seed(0)
    assert torch.equal(joined(images), Purifier.from_pretrained(name)(expected))
    assert not any(module.training for module in joined.modules())


SHIPPED = "maep_conv_patch4_32_cifar10"


@pytest.mark.parametrize("share", [0.0, 0.25, 1.0])
def test_mix__has_the_weights_between_start_and_end(tmp_path, share):
    ends = []
    for name in ("start", "end"):
        purifier = create_purifier("maep_conv_patch4_32", width=16, depth=1, heads=2, decoder_width=16, decoder_heads=2)
        for parameter in purifier.parameters():
            torch.nn.init.normal_(parameter)
        purifier.save_pretrained(tmp_path / f"{name}.safetensors")
        ends.append(purifier)
    mixed = load_purifier(f"mix:{share},start={tmp_path}/start.safetensors,end={tmp_path}/end.safetensors")
    assert not mixed.training
    for found, start, end in zip(mixed.parameters(), *(purifier.parameters() for purifier in ends), strict=True):
        torch.testing.assert_close(found, (1 - share) * start + share * end)


@pytest.mark.parametrize(
    ("spec", "error", "message"),
    [
        ("mix:0.5", ValueError, "mix needs start, end: mix takes share, start, end, as in mix:0.5,start=FILE,end=FILE"),
        (f"mix:2,start={SHIPPED},end={SHIPPED}", ValueError, "share must be in .0, 1., as in mix:0.5, not 2"),
        (f"mix:1,start={SHIPPED},end={SHIPPED}_denoise", ValueError, "are not of one architecture"),
        (f"mix:1,start={SHIPPED},end=none.pt", FileNotFoundError, "no weights file none.pt"),
        ("jpg:75", ValueError, "Unknown purifier 'jpg:75'.*Did you mean jpeg"),
        ("purifier", ValueError, "known are identity, jpeg, .*maep_conv.*and files of trained ones"),
        ("jpeg", ValueError, "jpeg needs quality: jpeg takes quality, as in jpeg:75"),
        ("jpeg:75,qualty=3", ValueError, "cannot use 'qualty=3': jpeg takes quality.*Did you mean quality"),
        ("jpeg:75,quality=50", ValueError, "cannot use 'quality=50'"),
        ("jpeg:75,50", ValueError, "cannot use '50'"),
        ("jpeg:high", ValueError, "quality must be a whole number, not 'high'"),
        ("gaussian:1/0", ValueError, "sigma must be a number"),
        ("identity:3", ValueError, "identity takes no parameters"),
        ("noise:0.1+", ValueError, "Unknown purifier ''"),
        ("runs/none.safetensors", FileNotFoundError, "no weights file runs/none.safetensors"),
        ("diffusion:runs/nowhere", (ValueError, FileNotFoundError), "runs/nowhere|diffusers"),
    ],
)
def test_load_purifier__says_what_is_wrong_and_what_is_known(spec, error, message):
    with pytest.raises(error, match=message):
        load_purifier(spec)


def test_load_purifier__files_of_any_architecture(tmp_path):
    torch.manual_seed(0)
    images = torch.rand(1, 3, 32, 32)
    for number, made in enumerate((create_purifier("maep_conv_patch4_32", **TINY), create_purifier("disco_small"))):
        made.save_pretrained(tmp_path / f"a+b-{number}")  # a name that would be two texts, were there no such file
        path = tmp_path / f"{number}.safetensors"
        (tmp_path / f"a+b-{number}").rename(path)
        again = load_purifier(str(path))
        assert type(again) is type(made)
        assert torch.equal(again(images), made.eval()(images))
        assert repr(load_purifier(f"median:3+{path}")[1]) == repr(again)


def test_load_purifier__an_existing_file_comes_before_a_text(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    create_purifier("disco_small").save_pretrained("noise:0.1+x.safetensors")
    assert isinstance(load_purifier("noise:0.1+x.safetensors"), PretrainedPurifier)


def test_load_purifier__files_from_before_there_were_architectures(tmp_path):
    path = tmp_path / "p.safetensors"
    create_purifier("maep_conv_patch4_32", **TINY).save_pretrained(path)
    state, header = read_weights(path)
    assert header.pop("architecture") == "mae"
    write_weights(path, state, header)
    assert isinstance(load_purifier(path), Purifier)
    write_weights(path, state, header | {"architecture": "unet"})
    with pytest.raises(ValueError, match="unknown architecture 'unet'"):
        load_purifier(path)


def test_create_purifier__is_the_network_of_the_shape():
    torch.manual_seed(0)
    purifier = create_purifier("maep_conv_patch4_32", **TINY)
    torch.manual_seed(0)
    expected = MaskedAutoencoder(replace(maep_conv_patch4_32(), **TINY))
    assert isinstance(purifier.network, MaskedAutoencoder)
    assert purifier.training
    for (name, one), other in zip(purifier.network.state_dict().items(), expected.state_dict().values(), strict=True):
        assert torch.equal(one, other), name


@pytest.mark.parametrize(
    ("shape", "overrides", "message"),
    [
        ("disco_bse", {}, "did you mean disco_base"),
        ("mae_vit_tiny_patch4", {}, "did you mean mae_vit_tiny_patch4_32"),
        ("disco_base", {"heads": 3}, r"Unknown architecture fields \['heads'\]; known are width, depth, mlp_width"),
    ],
)
def test_create_purifier__suggests_what_is_near(shape, overrides, message):
    with pytest.raises(ValueError, match=message):
        create_purifier(shape, **overrides)


def test_restore__is_the_masked_reconstruction_before_the_clamp():
    torch.manual_seed(0)
    purifier = create_purifier("maep_conv_patch4_32", **TINY).eval()
    for parameter in purifier.parameters():
        nn.init.normal_(parameter, std=0.3)
    images = torch.rand(2, 3, 32, 32)
    torch.manual_seed(1)
    restored = purifier.restore(images, 0.5)
    torch.manual_seed(1)
    assert torch.equal(restored, purifier.mae(images, 0.5).images)
    assert restored.max() > 1
    assert torch.equal(purifier(images), purifier.restore(images).clamp(0, 1))


def test_trained_on__is_what_the_files_say(tmp_path):
    for name, provenance in (("birds", {"data": "birds"}), ("cats", {"data": "cats"}), ("silent", None)):
        purifier = create_purifier("maep_conv_patch4_32", **TINY)
        purifier.save_pretrained(tmp_path / f"{name}.safetensors", provenance)
    birds, cats, silent = (tmp_path / f"{name}.safetensors" for name in ("birds", "cats", "silent"))
    said = "(the purifier's last stage, as its file says)"
    for spec, text in {
        "jpeg:75": "not stated",
        f"{silent}": "not stated",
        f"{birds}": f"birds {said}",
        f"noise:0.1+{birds}": f"birds {said}",
        f"{birds}+{cats}": f"birds and cats {said}",
        f"{birds}+{silent}": "not stated",
        f"mix:0.5,start={birds},end={cats}": f"birds and cats {said}",
        f"mix:0.5,start={birds},end={silent}": "not stated",
    }.items():
        assert trained_on(load_purifier(spec)) == text
    assert trained_on(apply_policy(load_purifier(birds), "interpolate")) == f"birds {said}"
    assert trained_on(nn.Sequential(load_purifier(birds), nn.Conv2d(3, 3, 1))) == "not stated"
    assert trained_on(None) == "not stated"


OWN = """
import torch
from torch import nn

class Blur(nn.Module):
    def __init__(self, share=0.5):
        super().__init__()
        self.share = nn.Parameter(torch.tensor(share))

    def forward(self, images):
        return torch.lerp(images, images.mean((2, 3), keepdim=True), self.share)

class Hidden(nn.Module):
    def __init__(self, strength=0.5, weights=()):
        super().__init__()
        self.strength = strength + sum(weights)

    def forward(self, images):
        return torch.lerp(images, images.mean((2, 3), keepdim=True), self.strength)

class Failing(nn.Module):
    def __init__(self):
        self.strength = None.strength

class Large(nn.Module):
    def forward(self, images):
        assert images.shape[-1] == 224, "224 only"
        return images

class Tiny(nn.Module):
    def forward(self, images):
        raise RuntimeError("5 pixels only")

def dim(images, factor=0.5):
    return images * factor

def noisy(images):
    return (images + 0.1 * torch.randn_like(images)).clamp(0, 1)

def normalised(images):
    return 2 * images - 1

def lost(images):
    return images / 0

def smaller(images):
    return images[..., 1:]

def several(images):
    return images, images

number = 3
"""


@pytest.fixture
def own(tmp_path, monkeypatch):
    (tmp_path / "own_purifiers.py").write_text(OWN)
    monkeypatch.syspath_prepend(tmp_path)


def test_python__takes_networks_functions_and_what_makes_them(own):
    images = torch.rand(2, 3, 32, 32)
    made = load_purifier("python:own_purifiers:Blur, share=0.25")
    assert type(made).__name__ == "Blur"
    assert not made.training
    mean = images.mean((2, 3), keepdim=True)
    torch.testing.assert_close(made(images), 0.75 * images + 0.25 * mean)
    torch.testing.assert_close(load_purifier("python:own_purifiers:dim")(images), images / 2)
    torch.testing.assert_close(load_purifier("python:own_purifiers:dim,factor=0.25")(images), images / 4)
    torch.testing.assert_close(load_purifier("mirror+python:own_purifiers:dim")(images), images.flip(-1) / 2)
    assert apply_policy(load_purifier("python:own_purifiers:Blur"), "tile:16")(images).shape == images.shape
    assert load_purifier("python:own_purifiers:Large") is not None


def test_python__trying_it_draws_no_random_number(own):
    state = torch.get_rng_state()
    load_purifier("python:own_purifiers:noisy")
    assert torch.equal(torch.get_rng_state(), state)


def test_python__options_and_edited_code_have_another_fingerprint(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    prints = []
    for code in (OWN, OWN, OWN.replace("images * factor", "images * factor**2")):
        sys.modules.pop("edited_purifiers", None)
        (tmp_path / "edited_purifiers.py").write_text(code)
        prints.append(of_architecture(load_purifier("noise:0.1+python:edited_purifiers:dim")))
    assert prints[0] == prints[1] != prints[2]
    for option in ("dim,factor", "Hidden,strength"):
        one, other = (load_purifier(f"python:edited_purifiers:{option}={value}") for value in (0.1, 0.95))
        assert of_architecture(one) != of_architecture(other)


def test_python__an_option_may_be_a_tuple(own):
    images = torch.rand(1, 3, 32, 32)
    given = load_purifier("python:own_purifiers:Hidden, weights=(0.25, 0.25), strength=0.25")
    assert torch.equal(given(images), load_purifier("python:own_purifiers:Hidden,strength=0.75")(images))


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("own_purifiers:Failing", "fails when it is called with nothing: AttributeError: 'NoneType' object"),
        ("own_purifiers", "names no attribute of a module"),
        ("own_purifierz:Blur", "cannot be imported"),
        ("own_purifiers:number", "is a int, neither a network nor a function"),
        ("own_purifiers:Blur,0.5", "'0.5' is no option; write python:MODULE:NAME,OPTION=VALUE"),
        ("own_purifiers:Blur,sigma=3", "cannot be called with {'sigma': 3}"),
        ("own_purifiers:Tiny", r"takes no images .* of \(32, 64, 96, 224\) pixels: 32 pixels, .* 5 pixels only"),
        ("own_purifiers:normalised", r"makes values from -1 to 1 of images in \[0, 1\]"),
        ("own_purifiers:lost", "makes values from nan"),
        ("own_purifiers:smaller", r"makes \(2, 3, 32, 31\) of images \(2, 3, 32, 32\)"),
        ("own_purifiers:several", "makes a tuple of images"),
    ],
)
def test_python__explains_mistakes(own, spec, message):
    with pytest.raises(ValueError, match=message):
        load_purifier(f"python:{spec}")
