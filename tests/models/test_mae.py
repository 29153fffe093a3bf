import pytest
import torch

from maep_lightning.functional.patches import patchify, unpatchify
from maep_lightning.models.mae import MAEConfig, MaskedAutoencoder
from maep_lightning.models.shapes import SHAPES

TINY = {"width": 16, "depth": 2, "heads": 2, "decoder_width": 16, "decoder_depth": 1, "decoder_heads": 2}


def tiny(**overrides):
    torch.manual_seed(0)
    mae = MaskedAutoencoder(MAEConfig(image_size=16, **{**TINY, **overrides}))
    for parameter in mae.parameters():  # no layer may hide behind its initial zeros
        torch.nn.init.normal_(parameter, std=0.2)
    return mae


@pytest.mark.oracle
@pytest.mark.parametrize("norm_pix", [False, True])
def test_plain_mae__has_the_loss_of_the_paper(published, norm_pix):
    mae = tiny(residual=False, norm_eps=published.NORM_EPS).double().eval()
    images, noise = torch.rand(3, 3, 16, 16, dtype=torch.float64), torch.rand(3, 16)
    output = mae(images, 0.5, noise=noise)
    loss = mae.reconstruction_loss(images, output, norm_pix)

    tables = {"pos_embed": published.positions(16, 4), "decoder_pos_embed": published.positions(16, 4)}
    state = mae.state_dict() | {name: table.double() for name, table in tables.items()}
    pixels, predictions = (images - 0.5) / 0.25, []
    for image, order in zip(pixels, noise.argsort(dim=1), strict=True):
        latent = published.encode(state, image, order[:8], 4, 2)
        predictions.append(published.decode(state, latent, order[:8], 2))
    masks = torch.ones(3, 16).scatter(1, noise.argsort(dim=1)[:, :8], 0)
    assert torch.equal(output.mask, masks)
    expected = published.masked_loss(torch.stack(predictions), pixels, masks, 4, norm_pix)
    torch.testing.assert_close(loss, expected, rtol=1e-6, atol=0)


def test_squash__is_a_sigmoid_of_slope_one_at_mid_grey():
    images = torch.rand(2, 3, 16, 16)
    plain, squashed = (tiny(residual=False, squash=squash)(images).images for squash in (False, True))
    torch.testing.assert_close(squashed, torch.sigmoid(4 * (plain - 0.5)))


def test_normalization__is_undone_behind_the_network():
    mean, std = torch.tensor([0.2, 0.4, 0.6]), torch.tensor([0.1, 0.2, 0.3])
    images = torch.rand(2, 3, 16, 16)
    of_its_own = tiny(mean=mean.tolist(), std=std.tolist(), refine_depth=2)(images).images

    def move(x, mean, std, new_mean, new_std):
        return ((x.movedim(1, 3) - mean) / std * new_std + new_mean).movedim(3, 1)

    usual = tiny(refine_depth=2)(move(images, mean, std, 0.5, 0.25)).images
    torch.testing.assert_close(of_its_own, move(usual, 0.5, 0.25, mean, std), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("kind", "depth", "channels"),
    [("convs", 4, [8, 8, 8, 12]), ("deep", 2, [8, 8, 8, 32, 32, 32, 32, 32, 48])],
)
def test_refinement__has_the_kind_the_depth_and_the_width_asked_for(kind, depth, channels):
    refinement = tiny(refine_kind=kind, refine_depth=depth, refine_width=8).refinement
    layers = [module for module in refinement.modules() if isinstance(module, torch.nn.Conv2d)]
    assert [layer.out_channels for layer in layers] == channels


@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("overrides", [{}, {"refine_depth": 3, "refine_width": 8}])
def test_gradient_checkpointing__gives_the_same_gradients_from_less_memory(overrides, precision):
    mae, images, noise = tiny(depth=4, **overrides), torch.rand(4, 3, 16, 16), torch.rand(4, 16)
    outcomes = []
    for mae.gradient_checkpointing in (False, True):
        kept = {}

        def keep(tensor, kept=kept):
            kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        mae.zero_grad()
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            with torch.autocast("cpu", torch.bfloat16, enabled=precision == torch.bfloat16):
                output = mae(images, 0.5, noise=noise)
            loss = mae.reconstruction_loss(images, output) + output.images.square().mean()
        loss.backward()
        outcomes.append((loss, [p.grad.clone() for p in mae.parameters()], sum(kept.values())))
    (loss, gradients, memory), (loss_again, gradients_again, memory_again) = outcomes
    assert torch.equal(loss, loss_again)
    assert all(map(torch.equal, gradients, gradients_again))
    assert memory_again < 0.5 * memory


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
    noise = torch.rand(1, 16)
    output = mae(images, 0.5, noise)
    hidden = (output.mask[:, :, None] * torch.ones(48)).reshape(1, 16, 48)
    changed = torch.where(unpatchify(hidden, 4, (4, 4)) > 0, torch.rand_like(images), images)
    again = mae(changed, 0.5, noise)
    assert torch.equal(output.images, again.images)


def test_forward__runs_at_other_resolutions_and_refuses_what_patches_do_not_divide():
    mae = tiny()
    assert mae(torch.rand(1, 3, 24, 40)).images.shape == (1, 3, 24, 40)
    with pytest.raises(ValueError, match="18x16"):
        mae(torch.rand(1, 3, 18, 16))


@pytest.mark.parametrize(
    ("overrides", "side"),
    [({"refine_kind": "deep", "patch_size": 2}, 34), ({"refine_kind": "convs", "patch_size": 3}, 33)],
)
def test_forward__says_what_the_refinement_cannot_take(overrides, side):
    mae = tiny(refine_depth=2, refine_width=8, **overrides)
    with pytest.raises(ValueError, match=rf"{side}x{side} pixels do not fit the {overrides['refine_kind']} refinement"):
        mae(torch.rand(1, 3, side, side))
    assert mae(torch.rand(1, 3, 36, 36)).images.shape == (1, 3, 36, 36)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"heads": 5}, "^width must be a multiple of heads.* 192 and 5 heads do not fit"),
        ({"decoder_width": 18, "decoder_heads": 3}, "decoder_width must be a multiple .*of 4.* 18 and 3 heads"),
        ({"patch_size": 0}, "patch_size must be at least 1, not 0"),
        ({"heads": -3}, "heads must be at least 1, not -3"),
        ({"depth": -1}, "depth must be at least 0, not -1"),
        ({"refine_depth": 2, "refine_width": 0}, "refine_width must be at least 1, not 0"),
        ({"refine_kind": "Deep"}, "refine_kind must be convs or deep, not 'Deep'"),
    ],
)
def test_config__explains_what_makes_no_network(overrides, message):
    with pytest.raises(ValueError, match=message):
        MAEConfig(**overrides)


@pytest.mark.parametrize("name", ["mae_vit_tiny_patch4_32", "mae_vit_tiny_patch2_32", "maep_conv_patch4_32"])
def test_shapes__run_at_their_size(name):
    mae = MaskedAutoencoder(SHAPES[name]())
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


def test_positions__of_many_sizes_do_not_pile_up():
    mae = tiny().eval()
    images = torch.rand(1, 3, 32, 32)
    with torch.no_grad():
        before = mae(images).images
        for side in (4, 8, 12, 16, 20, 24):
            mae(images[..., :side])
        assert len(mae._positions) == 4
        assert torch.equal(mae(images).images, before)
