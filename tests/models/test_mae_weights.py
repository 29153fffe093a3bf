"""Files made from the published definition, with random weights, against what our network makes of them."""

import argparse

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from timm.models.vision_transformer import VisionTransformer

from maep_lightning.models.classifiers import create_classifier
from maep_lightning.models.mae import MAEConfig, MaskedAutoencoder
from maep_lightning.models.mae_weights import is_published, load_published
from maep_lightning.models.purifier import Purifier
from maep_lightning.models.resnet import IMAGENET_MEAN, IMAGENET_STD

SHAPE = {
    "image_size": 32, "patch_size": 8, "width": 24, "depth": 3, "heads": 3, "decoder_width": 16, "decoder_depth": 2,
    "decoder_heads": 2, "residual": False, "norm_eps": 1e-6, "mean": IMAGENET_MEAN, "std": IMAGENET_STD,
}  # fmt: skip
ENCODER = ("cls_token", "pos_embed", "patch_embed", "blocks", "norm")


@pytest.fixture
def state(published):
    return published.random_state(image_size=32, patch=8, width=24, depth=3, decoder_width=16, decoder_depth=2)


@pytest.fixture
def mae():
    torch.manual_seed(0)
    return MaskedAutoencoder(MAEConfig(**SHAPE))


def write(path, state, **beside):
    torch.save({"model": state, **beside}, path)
    return path


@pytest.mark.oracle
@pytest.mark.parametrize("ratio", [0.0, 0.5, 0.75])
def test_load_published__makes_our_network_the_published_one(published, state, mae, tmp_path, ratio):
    report = load_published(mae, write(tmp_path / "mae.pth", state, args=argparse.Namespace(lr=1.0), epoch=3))
    assert sorted(report.matched) == sorted(state.keys() - {"pos_embed", "decoder_pos_embed"})
    assert report.kept == report.unused == report.resampled == report.notes == []

    mae = mae.double()
    state = {name: value.double() for name, value in state.items()}
    images, noise = torch.rand(2, 3, 32, 32, dtype=torch.float64), torch.rand(2, 16)
    normalized = mae.normalize(images)
    latent, mask, ids_restore = mae.forward_encoder(normalized, ratio, noise=noise)
    predictions = mae.forward_decoder(latent, ids_restore, (4, 4))
    kept = int(16 * (1 - ratio))
    order = noise.argsort(dim=1)[:, :kept] if ratio else torch.arange(16).expand(2, 16)
    for sample in range(2):
        expected = published.encode(state, normalized[sample], order[sample], 8, 3)
        torch.testing.assert_close(latent[sample], expected)
        expected = published.decode(state, expected, order[sample], 2)
        torch.testing.assert_close(predictions[sample], expected)
    if ratio:
        loss = mae.reconstruction_loss(images, mae(images, ratio, noise=noise))
        torch.testing.assert_close(loss, published.masked_loss(predictions, normalized, mask, 8))


@pytest.mark.oracle
def test_load_published__gives_the_features_of_the_same_encoder_in_timm(published, mae, tmp_path):
    timm_vit = VisionTransformer(32, 8, embed_dim=24, depth=3, num_heads=3, num_classes=0).double().eval()
    for parameter in timm_vit.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    timm_vit.pos_embed.data = published.positions(24, 4).double()
    report = load_published(mae, write(tmp_path / "vit.pth", timm_vit.state_dict()))
    assert report.unused == []
    images = torch.rand(2, 3, 32, 32, dtype=torch.float64)
    expected = timm_vit.forward_features(images)
    latent, _, _ = mae.double().forward_encoder(images, 0.0)
    torch.testing.assert_close(latent, expected)


def encoder_of(state):
    return {name: value for name, value in state.items() if name.startswith(ENCODER)}


@pytest.mark.parametrize("suffix", ["pth", "safetensors"])
def test_load_published__an_encoder_leaves_our_decoder_as_it_began(state, mae, tmp_path, suffix):
    encoder, path = encoder_of(state), tmp_path / f"encoder.{suffix}"
    before = {name: value.clone() for name, value in mae.state_dict().items()}
    if suffix == "pth":
        write(path, encoder | {"head.weight": torch.zeros(5, 24)})
    else:
        save_file(encoder | {"head.weight": torch.zeros(5, 24)}, path)
    report = load_published(mae, path)
    after = mae.state_dict()
    assert {name for name in after if not torch.equal(after[name], before[name])} == encoder.keys() - {"pos_embed"}
    assert all(name == "mask_token" or name.startswith("decoder_") for name in report.kept)
    assert report.unused == ["head.weight"]
    assert "no decoder" in str(report)
    assert "unused       1  head" in str(report)


@pytest.mark.parametrize(
    ("changes", "note"),
    [
        ({"residual": True}, "predicts pixels"),
        ({"decoder_width": 32}, "decoder is of another shape"),
        ({"mean": (0.5, 0.5, 0.5)}, "ImageNet's mean"),
    ],
)
def test_load_published__says_what_does_not_go_together(state, tmp_path, changes, note):
    mae = MaskedAutoencoder(MAEConfig(**SHAPE | changes))
    report = load_published(mae, write(tmp_path / "mae.pth", state))
    assert note in str(report)
    assert ("decoder_norm.weight" in report.kept) == ("decoder" in note or "pixels" in note)
    assert ("decoder_norm.weight" in report.unused) == ("decoder" in note or "pixels" in note)


def test_load_published__other_patches_see_a_resized_image_as_the_published_ones_the_original(
    published, tmp_path, state
):
    mae = MaskedAutoencoder(MAEConfig(**SHAPE | {"patch_size": 16}))
    report = load_published(mae, write(tmp_path / "mae.pth", encoder_of(state)))
    assert report.resampled == ["patch_embed.proj.weight"]
    patch = torch.rand(1, 3, 8, 8)  # one patch is the image, since resizing mixes what lies side by side
    large = F.interpolate(patch, size=(16, 16), mode="bicubic", antialias=True)
    expected = F.conv2d(patch, state["patch_embed.proj.weight"], state["patch_embed.proj.bias"]).flatten()
    torch.testing.assert_close(mae.patch_embed(large).flatten(), expected, atol=1e-4, rtol=1e-4)


def test_load_published__refuses_other_encoders_and_positions(published, state, mae, tmp_path):
    for changes, example in (({"depth": 2}, "blocks.2"), ({"depth": 4}, "blocks.3"), ({"width": 48}, "width 48")):
        with pytest.raises(ValueError, match=rf"mae.pth does not fit the encoder[\s\S]*{example}"):
            load_published(MaskedAutoencoder(MAEConfig(**SHAPE | changes)), write(tmp_path / "mae.pth", state))
    learnt = state | {"pos_embed": torch.randn(1, 17, 24)}
    with pytest.raises(ValueError, match="not the sine-cosine table"):
        load_published(mae, write(tmp_path / "mae.pth", learnt))
    rows_first = published.positions(24, 4)[..., torch.arange(24).roll(12)]
    with pytest.raises(ValueError, match="not the sine-cosine table"):
        load_published(mae, write(tmp_path / "mae.pth", state | {"pos_embed": rows_first}))
    with pytest.raises(ValueError, match="names of facebookresearch/mae"):
        load_published(mae, write(tmp_path / "net.pth", create_classifier("resnet8", 10).state_dict()))


def test_is_published__tells_a_purifier_from_bare_weights(state, mae, tmp_path):
    Purifier(mae).save_pretrained(tmp_path / "purifier.safetensors")
    assert is_published(write(tmp_path / "mae.pth", state))
    assert not is_published(tmp_path / "purifier.safetensors")
    assert not is_published("maep_conv_patch4_32_cifar10")
