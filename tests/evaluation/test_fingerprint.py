"""What a run is bound to: options of libraries that no weight and no printed structure shows, and their versions."""

import json
from importlib.metadata import version

import pytest
import torch
from torch import nn

from maep_lightning.evaluation import evaluate
from maep_lightning.evaluation.binding import bind
from maep_lightning.evaluation.fingerprint import of_architecture, of_libraries, of_weights
from maep_lightning.evaluation.plan import Manifest, PlanChangedError
from maep_lightning.evaluation.verify import recheck
from maep_lightning.models.classifiers import create_classifier, load_classifier, save_classifier
from maep_lightning.models.lora import LoRALinear
from maep_lightning.models.mae import MAEConfig, MaskedAutoencoder
from maep_lightning.models.policies import apply_policy
from maep_lightning.models.preprocessing import NORMALIZATIONS, NormalizedClassifier
from maep_lightning.models.purifier import Purifier
from maep_lightning.models.registry import load_purifier

pytestmark = pytest.mark.usefixtures("_no_figure")
VIT = "timm:vit_tiny_patch16_224,img_size=32,patch_size=4,depth=1"
GOOGLENET = "torchvision:googlenet,aux_logits=False,init_weights=False"
OPTIONS = [(VIT, "num_heads=6"), (GOOGLENET, "transform_input=True")]


@pytest.mark.parametrize(("name", "option"), OPTIONS)
def test_architecture__options_of_a_library_are_in_it(name, option):
    plain, same, other = (create_classifier(text, 3) for text in (name, name, f"{name},{option}"))
    other.load_state_dict(plain.state_dict())
    assert of_weights(other) == of_weights(plain)
    assert of_architecture(same) == of_architecture(plain) != of_architecture(other)


@pytest.mark.parametrize("kind", ["own file", "state dict"])
def test_architecture__options_of_a_file_s_name_are_in_it(tmp_path, kind):
    plain, other = VIT, f"{VIT},num_heads=6"
    model, loaded = create_classifier(plain, 3), []
    for name in (plain, other):
        if kind == "own file":
            save_classifier(model, tmp_path / "c.safetensors", name, 3)
            loaded.append(load_classifier(tmp_path / "c.safetensors"))
        else:
            torch.save(model.network.state_dict(), tmp_path / "c.pth")
            loaded.append(load_classifier(tmp_path / "c.pth", name, 3))
    assert of_weights(loaded[0]) == of_weights(loaded[1])
    assert of_architecture(loaded[0]) != of_architecture(loaded[1])


def test_architecture__order_of_options_is_not_in_it():
    one, other = (f"timm:resnet10t,{text}" for text in ("drop_rate=0.1,stem_width=16", "stem_width=16,drop_rate=0.1"))
    assert of_architecture(create_classifier(one, 3)) == of_architecture(create_classifier(other, 3))


MAE = {"width": 24, "depth": 1, "heads": 3, "decoder_width": 24, "decoder_depth": 1, "decoder_heads": 3}


@pytest.mark.parametrize(
    ("option", "policy"),
    [
        ({"residual": False}, "native"),
        ({"squash": True}, "native"),
        ({"heads": 2}, "native"),
        ({"decoder_heads": 2}, "native"),
        ({"heads": 2, "decoder_heads": 2}, "native"),
        ({"image_size": 64}, "interpolate"),
    ],
)
def test_architecture__options_of_the_masked_autoencoder_are_in_it(option, policy):
    plain, same, other = (Purifier(MaskedAutoencoder(MAEConfig(**(MAE | more)))).eval() for more in ({}, {}, option))
    for weight in plain.parameters():
        nn.init.normal_(weight, std=0.2)
    for network in (same, other):
        network.load_state_dict(plain.state_dict())
    same.mae.gradient_checkpointing = True
    plain, same, other = (apply_policy(network, policy) for network in (plain, same, other))
    images = torch.rand(1, 3, 96, 96)
    assert torch.equal(same(images), plain(images))
    assert not torch.allclose(other(images), plain(images), atol=1e-5)
    assert of_weights(other) == of_weights(plain)
    assert of_architecture(same) == of_architecture(plain) != of_architecture(other)


def test_architecture__scaling_of_lora_is_in_it():
    base = nn.Linear(4, 4)
    plain, same, other = (LoRALinear(base, 2, alpha) for alpha in (2.0, 2.0, 4.0))
    for layer in (same, other):
        layer.load_state_dict(plain.state_dict())
    assert of_weights(other) == of_weights(plain)
    assert of_architecture(same) == of_architecture(plain) != of_architecture(other)


def test_libraries__are_those_of_the_parts():
    timm = create_classifier("timm:resnet10t,size=16", 3)
    assert of_libraries(timm) == {"timm": version("timm")}
    assert of_libraries(create_classifier("torchvision:squeezenet1_1", 3)) == {"torchvision": version("torchvision")}
    assert of_libraries(load_purifier("mirror+jpeg:75")) == {"pillow": version("pillow")}
    assert of_libraries(apply_policy(load_purifier("jpeg:75"), "tile:16")) == {"pillow": version("pillow")}
    for none in (None, create_classifier("resnet8", 3), load_purifier("mirror")):
        assert of_libraries(none) == {}


@pytest.fixture
def library(linear):
    """A case whose classifier is a library's."""
    network, purifier, images, labels = linear.build(8)
    classifier = NormalizedClassifier(network, *NORMALIZATIONS["none"]).eval()
    classifier.packages = ("timm",)
    return classifier, purifier, images, labels


@pytest.fixture
def upgrade(monkeypatch):
    """Replaces timm by a newer one."""

    def to(number):
        monkeypatch.setattr(
            "maep_lightning.evaluation.fingerprint.version", lambda name: number if name == "timm" else version(name)
        )

    return to


def test_upgraded_library__is_another_evaluation_and_attacked_anew(linear, library, upgrade, tmp_path):
    plan, cache = linear.plan(8, threats=("none", "blind:bim")), tmp_path / "cache"
    evaluate(*library, plan, tmp_path / "old", cache_dir=cache, progress=False, sanity=0)
    before = set(cache.rglob("*.safetensors"))
    upgrade("99.0")
    with pytest.raises(PlanChangedError, match=rf"classifier_libraries: was .*{version('timm')}.*, is .*99\.0"):
        evaluate(*library, plan, tmp_path / "old", cache_dir=cache, progress=False, sanity=0)
    evaluate(*library, plan, tmp_path / "new", cache_dir=cache, progress=False, sanity=0)
    assert len(set(cache.rglob("*.safetensors"))) == 2 * len(before)


def test_upgraded_library__is_a_note_to_who_checks_the_run(linear, library, upgrade, tmp_path):
    evaluate(*library, linear.plan(8, threats=("none", "blind:bim")), tmp_path, progress=False, sanity=0)
    assert recheck(tmp_path, *library).notes == []
    upgrade("99.0")
    found = recheck(tmp_path, *library)
    assert found.notes == [f"timm was {version('timm')}, is 99.0"]
    assert found.faults == []


def test_upgraded_library__concerns_those_who_use_it_alone(linear, library, upgrade, tmp_path):
    plan = linear.plan(8, threats=("none", "blind:bim"))

    def contexts(classifier, purifier):
        rungs = bind(classifier, purifier, *library[2:], plan, tmp_path, None, None).rungs
        return {rung.name: rung.context_hash if rung.origin is None else rung.origin_hash for rung in rungs}

    own, jpeg = linear.build(8)[0], nn.Sequential(library[1]).eval()
    jpeg.packages = ("timm",)
    assert "_libraries" not in json.dumps(Manifest.bind(plan, own, library[1], *library[2:], 10, "cpu").values)
    before = contexts(own, jpeg), contexts(library[0], library[1])
    upgrade("99.0")
    after = contexts(own, jpeg), contexts(library[0], library[1])
    assert {name for name in before[0] if before[0][name] != after[0][name]} == {"none"}  # blind ones are made once
    assert {name for name in before[1] if before[1][name] != after[1][name]} == set(before[1])


def test_run_of_before__that_knows_no_libraries_is_still_followed(linear, library, tmp_path, monkeypatch):
    with monkeypatch.context() as before:
        before.setattr("maep_lightning.evaluation.fingerprint.of_libraries", lambda module: {})
        evaluate(*library, linear.plan(8, threats=("none", "blind:bim")), tmp_path, progress=False, sanity=0)
    found = recheck(tmp_path, *library)
    assert found.faults == []
    assert found.notes == [f"timm was None, is {version('timm')}"]
