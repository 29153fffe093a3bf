import math

import pytest
import torch

from maep_lightning.functional.patches import patchify, unpatchify
from maep_lightning.models.mae import MAEConfig, MaskedAutoencoder
from maep_lightning.models.shapes import SHAPES, create_mae

TINY = {"width": 16, "depth": 2, "heads": 2, "decoder_width": 16, "decoder_depth": 1, "decoder_heads": 2}


def tiny(**overrides):
    torch.manual_seed(0)
    mae = MaskedAutoencoder(MAEConfig(image_size=16, **{**TINY, **overrides}))
    for parameter in mae.parameters():  # no layer may hide behind its initial zeros
        torch.nn.init.normal_(parameter, std=0.2)
    return mae


def layer_norm(x, state, name):
    mean, var = x.mean(-1, keepdim=True), x.var(-1, unbiased=False, keepdim=True)
    eps = 1e-6 if "norm1" in name or "norm2" in name else 1e-5
    return (x - mean) / (var + eps).sqrt() * state[f"{name}.weight"] + state[f"{name}.bias"]


def block(x, state, name, heads):
    b, n, d = x.shape
    y = layer_norm(x, state, f"{name}.norm1") @ state[f"{name}.attn.qkv.weight"].T + state[f"{name}.attn.qkv.bias"]
    q, k, v = y.reshape(b, n, 3, heads, d // heads).permute(2, 0, 3, 1, 4)
    attention = (q @ k.transpose(-1, -2) / math.sqrt(d // heads)).softmax(-1)
    y = (attention @ v).transpose(1, 2).reshape(b, n, d)
    x = x + y @ state[f"{name}.attn.proj.weight"].T + state[f"{name}.attn.proj.bias"]
    y = layer_norm(x, state, f"{name}.norm2") @ state[f"{name}.mlp.fc1.weight"].T + state[f"{name}.mlp.fc1.bias"]
    y = 0.5 * y * (1 + torch.erf(y / math.sqrt(2)))
    return x + y @ state[f"{name}.mlp.fc2.weight"].T + state[f"{name}.mlp.fc2.bias"]


@pytest.mark.oracle
@pytest.mark.parametrize("norm_pix", [False, True])
def test_plain_mae__has_the_loss_of_the_paper(norm_pix):
    """He et al. 2022, section 3 and appendix A.1, written out with matrix products for a given mask."""
    mae = tiny(residual=False).double().eval()
    images = torch.rand(3, 3, 16, 16, dtype=torch.float64)
    output = mae(images, 0.5, torch.Generator().manual_seed(3))
    loss = mae.reconstruction_loss(images, output, norm_pix)

    state, mask = mae.state_dict(), output.mask.bool()
    pixels = (images - 0.5) / 0.25
    # a patch in the order of the convolution (channel, row, column), to use its weights as a matrix
    blocks = pixels.unfold(2, 4, 4).unfold(3, 4, 4).permute(0, 2, 3, 1, 4, 5).reshape(3, 16, 48)
    tokens = blocks @ state["patch_embed.proj.weight"].reshape(16, 48).T + state["patch_embed.proj.bias"]
    position = mae.positions(16, (4, 4), images.device).double()[0]
    reconstruction = torch.zeros(3, 16, 48, dtype=torch.float64)
    for sample in range(3):
        visible = (~mask[sample]).nonzero()[:, 0]
        x = torch.cat([state["cls_token"][0], tokens[sample, visible] + position[visible]])[None]
        for index in range(2):
            x = block(x, state, f"blocks.{index}", 2)
        x = layer_norm(x, state, "norm") @ state["decoder_embed.weight"].T + state["decoder_embed.bias"]
        full = state["mask_token"][0].repeat(16, 1)
        full[visible] = x[0, 1:]
        x = block(torch.cat([x[0, :1], full + position])[None], state, "decoder_blocks.0", 2)
        x = layer_norm(x, state, "decoder_norm") @ state["decoder_pred.weight"].T + state["decoder_pred.bias"]
        reconstruction[sample] = x[0, 1:]
    target = patchify(pixels, 4)
    if norm_pix:
        target = (target - target.mean(-1, keepdim=True)) / (target.var(-1, keepdim=True) + 1e-6).sqrt()
    expected = (reconstruction - target)[mask].square().mean()
    torch.testing.assert_close(loss, expected, rtol=1e-6, atol=0)


@pytest.mark.parametrize("residual", [False, True])
@pytest.mark.parametrize("refine_depth", [0, 3])
def test_forward__at_ratio_0_is_bitwise_deterministic_and_has_a_finite_loss(residual, refine_depth):
    mae = tiny(residual=residual, refine_depth=refine_depth, refine_width=8)
    images = torch.rand(2, 3, 16, 16)
    first, second = mae(images), mae(images)
    assert torch.equal(first.images, second.images)
    assert mae.reconstruction_loss(images, first) == 0


def test_residual__starts_as_the_identity_on_visible_patches():
    torch.manual_seed(0)
    mae = MaskedAutoencoder(MAEConfig(image_size=16, **TINY, residual=True, refine_depth=3, refine_width=8))
    images = torch.rand(2, 3, 16, 16)
    torch.testing.assert_close(mae(images).images, images, atol=1e-6, rtol=0)
    masked = mae(images, 0.5)
    visible = masked.mask == 0
    same = torch.isclose(patchify(masked.images, 4), patchify(images, 4), atol=1e-6).all(-1)
    assert torch.equal(same, visible)


@pytest.mark.parametrize("refine_depth", [0, 3])
def test_masked_pixels__are_never_seen(refine_depth):
    mae = tiny(refine_depth=refine_depth, refine_width=8)
    images = torch.rand(1, 3, 16, 16)
    output = mae(images, 0.5, torch.Generator().manual_seed(0))
    hidden = (output.mask[:, :, None] * torch.ones(48)).reshape(1, 16, 48)
    changed = torch.where(unpatchify(hidden, 4, (4, 4)) > 0, torch.rand_like(images), images)
    again = mae(changed, 0.5, torch.Generator().manual_seed(0))
    assert torch.equal(output.images, again.images)


def test_forward__runs_at_other_resolutions_and_refuses_what_patches_do_not_divide():
    mae = tiny()
    assert mae(torch.rand(1, 3, 24, 40)).images.shape == (1, 3, 24, 40)
    with pytest.raises(ValueError, match="18x16"):
        mae(torch.rand(1, 3, 18, 16))


@pytest.mark.parametrize("name", ["mae_vit_tiny_patch4_32", "mae_vit_tiny_patch2_32", "maep_conv_patch4_32"])
def test_shapes__run_at_their_size(name):
    mae = create_mae(name)
    size = mae.config.image_size
    assert mae(torch.rand(1, 3, size, size), 0.5).images.shape == (1, 3, size, size)


def test_base_patch16_224__has_the_parameters_of_the_published_network():
    # ViT-B/16 encoder of facebookresearch/mae without its fixed position tables: 85,798,656 + cls token counted inside
    config = SHAPES["mae_vit_base_patch16_224"]()
    with torch.device("meta"):
        mae = MaskedAutoencoder(config)
    encoder = 768 * 3 * 256 + 768 + 768 + 12 * (4 * 768 * 768 + 4 * 768 + 8 * 768 * 768 + 5 * 768 + 4 * 768) + 2 * 768
    decoder = 768 * 512 + 512 + 512 + 8 * (4 * 512**2 + 4 * 512 + 8 * 512**2 + 5 * 512 + 4 * 512) + 2 * 512 + 513 * 768
    assert config.residual is False
    assert sum(p.numel() for p in mae.parameters()) == encoder + decoder


def test_create_mae__suggests_names():
    with pytest.raises(ValueError, match="did you mean mae_vit_tiny_patch4_32"):
        create_mae("mae_vit_tiny_patch4")
    with pytest.raises(ValueError, match=r"Unknown architecture fields \['widht'\]"):
        create_mae("mae_vit_tiny_patch4_32", widht=3)
