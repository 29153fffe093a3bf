"""What a run is bound to: options of libraries that no weight and no printed structure shows."""

import pytest
import torch

from maep_lightning.evaluation.fingerprint import of_architecture, of_weights
from maep_lightning.models.classifiers import create_classifier, load_classifier, save_classifier

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
